#!/usr/bin/env node
// The compiler as forge expects it, from npm's `solc`: `--version`, and standard JSON from stdin to stdout.
"use strict";

if (process.argv.includes("--version")) {
  // The npm package carries the compiler's version; asking the compiler itself would load megabytes of wasm.
  const { version } = require("solc/package.json");
  console.log(`solc, the solidity compiler commandline interface\nVersion: ${version}+commit.0.Emscripten.clang`);
} else {
  const input = require("node:fs").readFileSync(0, "utf8");
  process.stdout.write(require("solc").compile(input));
}
