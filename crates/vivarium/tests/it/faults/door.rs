//! A TEST'S DOOR to the chain: a port on loopback that passes bytes on, until the test cuts it or lets it hang.

use serde_json::Value;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Open,
    /// Those that stand end, and new ones at once.
    Cut,
    /// They stand, and nothing that is asked on them is ever answered.
    Hangs,
}

/// The doors of a world's daemons, a port each.
pub struct Doors {
    doors: Vec<(String, u16, watch::Sender<Door>)>,
    /// The world's folder, where its chain's port is written before a daemon starts.
    leads_to: Arc<OnceLock<PathBuf>>,
    _runtime: Runtime,
}

impl Doors {
    /// A door for each of these daemons.
    pub fn of(daemons: &[&str]) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let leads_to: Arc<OnceLock<PathBuf>> = Arc::default();
        let open = |name: &&str| {
            let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a port");
            let port = listener.local_addr().expect("its address").port();
            let (say, door) = watch::channel(Door::Open);
            runtime.spawn(keep(listener, leads_to.clone(), door));
            ((*name).to_owned(), port, say)
        };
        let doors = daemons.iter().map(open).collect();
        Self { doors, leads_to, _runtime: runtime }
    }

    /// The flags by which a world's daemons go through them.
    pub fn flags(&self) -> Vec<String> {
        self.doors.iter().map(|(name, port, _)| format!("--chain-door={name}={port}")).collect()
    }

    pub fn lead_to(&self, data_dir: PathBuf) {
        self.leads_to.set(data_dir).expect("doors of one world");
    }

    /// Does this to the doors of all daemons whose names begin so.
    pub fn set(&self, names: &str, door: Door) {
        let those = self.doors.iter().filter(|(name, ..)| name.starts_with(names));
        for (.., say) in those {
            say.send_replace(door);
        }
    }
}

async fn keep(listener: TcpListener, leads_to: Arc<OnceLock<PathBuf>>, door: watch::Receiver<Door>) {
    while let Ok((from, _)) = listener.accept().await {
        let internal = leads_to.get().map(|data_dir| data_dir.join("internal.json"));
        let world: Option<Value> = internal.and_then(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok());
        let port = world.and_then(|world| u16::try_from(world["ports"]["chain"].as_u64()?).ok());
        tokio::spawn(pass(from, port.expect("the world has a chain"), door.clone()));
    }
}

/// One connection, until it ends or the door is no more what it was.
async fn pass(mut from: TcpStream, chain: u16, mut door: watch::Receiver<Door>) {
    let now = *door.borrow_and_update();
    match now {
        Door::Open => {
            let Ok(mut to) = TcpStream::connect((Ipv4Addr::LOCALHOST, chain)).await else { return };
            tokio::select! {
                _ = copy_bidirectional(&mut from, &mut to) => return,
                _ = door.changed() => {}
            }
            // What stood when the door began to hang hangs, too.
            if *door.borrow_and_update() == Door::Hangs {
                swallow(from, door).await;
            }
        }
        Door::Cut => {}
        Door::Hangs => swallow(from, door).await,
    }
}

/// Reads and says nothing for as long as the door hangs.
async fn swallow(mut from: TcpStream, mut door: watch::Receiver<Door>) {
    let mut bytes = [0; 4096];
    loop {
        tokio::select! {
            read = from.read(&mut bytes) => if !read.is_ok_and(|count| count > 0) { return },
            _ = door.changed() => return,
        }
    }
}
