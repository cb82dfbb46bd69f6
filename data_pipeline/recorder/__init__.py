"""Records real terminal sessions: scripted solvers at work in a real shell on a real terminal."""
