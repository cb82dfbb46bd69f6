#!/bin/bash
# The reward of a task that has no tests: 1 where the answer file is there and not empty, else 0.
PATH=/usr/bin:/bin:$PATH  # the agent may have put programs of its own before the system's
answer=$(cat "$(dirname "$0")/answer_file.txt")
mkdir -p /logs/verifier
if [ -f "$answer" ] && [ -s "$answer" ]; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
