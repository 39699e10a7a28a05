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
  "IdentityRegistry",
  "LeaseMarket",
  "Multicall3",
  "Oversight",
  "Permit2",
  "Purse",
  "TestPermitToken",
  "TestUSDC",
  "TestWallet",
  "TestWalletFactory",
  "Treasury",
  "TreasuryFactory",
  "UptoPermit2Proxy",
];
// What else decides the bytecode: the compiler's settings, its version and OpenZeppelin's.
const settings = ["foundry.toml", "package-lock.json", "solc.cjs"];

const files = new Map();
execFileSync(join(here, "node_modules/.bin/forge"), ["build", "src"], { cwd: here, stdio: ["ignore", "inherit", "inherit"] });
const artifact = (file, name = file) => JSON.parse(readFileSync(join(here, `out/${file}.sol/${name}.json`), "utf8"));
for (const name of contracts) {
  const { abi, bytecode } = artifact(name);
  files.set(`abi/${name}.json`, JSON.stringify({ abi: name === "Treasury" ? treasuryAbi() : abi, bytecode: bytecode.object }) + "\n");
}

// A treasury is two contracts at one address. Its ABI is its interface, and the two halves must be just that: nothing
// missing, nothing that the interface does not name.
function treasuryAbi() {
  const key = (item) => `${item.type} ${item.name}(${JSON.stringify(item.inputs)})`;
  const face = artifact("ITreasury").abi;
  const halves = ["Treasury", "Oversight"].flatMap((name) => artifact(name).abi).filter((item) => item.name);
  const own = new Set(["OVERSIGHT", "eip712Domain"]);
  const names = (items) => new Set(items.filter((item) => item.type === "function").map((item) => `${item.name}(${item.inputs.map((input) => input.type)})`));
  const [wanted, made] = [names(face), names(halves)];
  const wrong = [...wanted].filter((name) => !made.has(name)).concat([...made].filter((name) => !wanted.has(name) && !own.has(name.split("(")[0])));
  if (wrong.length) throw new Error(`ITreasury and the two halves of the treasury differ: ${wrong.join(", ")}`);
  const known = new Set(face.map(key));
  return face.concat(halves.filter((item) => !known.has(key(item)) && known.add(key(item)) && (item.type !== "function" || own.has(item.name))));
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
