#!/bin/bash
# Runs the task's tests and writes /logs/verifier/reward.txt and tests.json, without the network.
# The agent may have put programs of its own before the system's; of the sandbox, /usr is read-only.
PATH=/usr/bin:/bin:$PATH
tests=$(cd "$(dirname "$0")" && pwd)
mkdir -p /logs/verifier
echo 0 > /logs/verifier/reward.txt
cd /app || exit 1
# -I: nothing that lies in /app or in the home folder is imported instead of a real module.
# The limit is below the verifier's own, so that what passed before a test that hangs still counts.
timeout --kill-after=5 "$(cat "$tests/time_limit_s.txt")" \
    python3 -I -B "$tests/weighted_reward.py" /logs/verifier
