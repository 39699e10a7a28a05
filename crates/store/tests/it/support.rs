use axum::Router;
use std::io::Read;
use store::cid::Cid;
use store::unixfs::{Profile, import_bytes};
use store::{Blocks, Error, Kind};
use tempfile::TempDir;
use tokio::net::TcpListener;

/// A store in a folder that goes away with it.
pub struct Store {
    pub blocks: Blocks,
    pub dir: TempDir,
}

/// A folder that goes away. In memory where there is plenty: thousands of small files, and syncs that would wait for
/// whatever else the machine writes.
pub fn folder() -> TempDir {
    let memory = "/dev/shm";
    let is_roomy = rustix::fs::statvfs(memory).is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) >= 1 << 30);
    if is_roomy { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

pub fn store() -> Store {
    let dir = folder();
    Store { blocks: Blocks::open(dir.path()).unwrap(), dir }
}

impl Store {
    /// Stores `content` by the small profile: 1 KiB leaves, 4 links a node, so that little content is many blocks.
    pub fn add(&self, content: &[u8]) -> Cid {
        import_bytes(content, SMALL, &mut |cid, bytes| self.blocks.put_later(&cid, &bytes)).unwrap().cid
    }

    pub fn put_node(&self, node: &store::dag::Node) -> Cid {
        let bytes = node.encode();
        let cid = store::cid::of_dag_pb(&bytes);
        self.blocks.put_later(&cid, &bytes).unwrap();
        cid
    }

    pub fn put_raw(&self, bytes: &[u8]) -> Cid {
        let cid = store::cid::of_raw(bytes);
        self.blocks.put_later(&cid, bytes).unwrap();
        cid
    }

    pub fn count(&self) -> usize {
        self.blocks.iter().map(Result::unwrap).count()
    }
}

/// This program again, to run one ignored test of it where no file may grow beyond so many units of 512 or 1024 bytes.
pub fn on_a_full_disk(units: u32, test: &str) -> std::process::Command {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &format!("trap '' XFSZ; ulimit -f {units}; exec \"$@\""), "sh"]);
    command.arg(std::env::current_exe().unwrap()).args([test, "--exact", "--ignored", "--nocapture"]);
    command
}

pub const SMALL: Profile = Profile { chunk_bytes: 1024, width: 4, raw_leaves: true, cid_v0: false };

/// The bytes that tests/reference/cids.mjs makes: xorshift32 from 1, low byte of each step.
pub struct Noise(u32);

impl Noise {
    pub fn new() -> Self {
        Self(1)
    }
}

impl Read for Noise {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        for byte in out.iter_mut() {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 17;
            self.0 ^= self.0 << 5;
            *byte = self.0.to_le_bytes()[0];
        }
        Ok(out.len())
    }
}

pub fn noise(bytes: u64) -> Vec<u8> {
    let mut content = Vec::new();
    Noise::new().take(bytes).read_to_end(&mut content).unwrap();
    content
}

/// Serves `router` on a free port for as long as the test's runtime lives; returns its URL.
pub async fn spawn(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

#[track_caller]
pub fn refused<T>(result: Result<T, Error>, kind: Kind, words: &str) {
    let error = match result {
        Err(e) => e,
        Ok(_) => panic!("not refused; `{words}` was expected"),
    };
    assert_eq!(error.kind, kind, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}
