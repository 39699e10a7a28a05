// Compiles the contracts and writes what the rest of the project reads of them:
//   abi/<Contract>.json   {"abi":[…],"bytecode":"0x…"}, one line
//   abi/SOURCES.sha256    digest and path of everything that goes in and of every file that came out
// `node build.mjs`          build and write
// `node build.mjs --check`  build, write nothing, name each stale file, exit 1 if there is one
// Works off line once `npm ci` has run.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const contracts = [
  "BatchSettlement",
  "DepositCollector3009",
  "DepositCollectorPermit2",
  "ExactPermit2Proxy",
  "LeaseMarket",
  "Multicall3",
  "Permit2",
  "TestPermitToken",
  "TestUSDC",
  "Treasury",
  "TreasuryFactory",
  "UptoPermit2Proxy",
];
// What else decides the bytecode: the compiler's settings, its version and OpenZeppelin's.
const settings = ["foundry.toml", "package-lock.json", "solc.cjs"];

const files = new Map();
execFileSync(join(here, "node_modules/.bin/forge"), ["build", "src"], { cwd: here, stdio: ["ignore", "inherit", "inherit"] });
for (const name of contracts) {
  const { abi, bytecode } = JSON.parse(readFileSync(join(here, `out/${name}.sol/${name}.json`), "utf8"));
  files.set(`abi/${name}.json`, JSON.stringify({ abi, bytecode: bytecode.object }) + "\n");
}
const sources = readdirSync(join(here, "src"), { recursive: true }).map((path) => `src/${path}`).filter((path) => path.endsWith(".sol"));
const digests = [...settings, ...sources].map((path) => [path, readFileSync(join(here, path))]).concat([...files]);
files.set(
  "abi/SOURCES.sha256",
  digests
    .map(([path, bytes]) => `${createHash("sha256").update(bytes).digest("hex")}  ${path}\n`)
    .sort((a, b) => (a.slice(66) < b.slice(66) ? -1 : 1))
    .join(""),
);

let stale = 0;
for (const [path, text] of files) {
  const file = join(here, path);
  if (existsSync(file) && readFileSync(file, "utf8") === text) continue;
  if (process.argv.includes("--check")) {
    console.error(`stale: contracts/${path} (run: cargo xtask contracts)`);
    stale = 1;
  } else {
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, text);
    console.log(`wrote contracts/${path}`);
  }
}
process.exit(stale);
