#!/bin/sh
# A STAND-IN for an engine's process: the test that starts it listens on its socket and answers in its place.
echo ready
while read -r _; do :; done
