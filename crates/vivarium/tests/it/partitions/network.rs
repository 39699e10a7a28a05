//! Network namespaces of a test: one for the world, one for each of its providers, one for its customers, a link between
//! any two of them. Nothing in it leads out, and each link can be cut alone.
//!
//! The test runs again in a namespace without any network, of which the others hang. Each has an address of 127.0.0.0/8,
//! as the world's processes know one another; packets for the others' addresses go over the link. Where a link is cut,
//! its far end is down: what is sent is lost, and nobody is told.

use std::fs;
use std::process::{Command, Stdio};

/// Set for the run inside: what its namespaces' names end in.
pub const MARK: &str = "VIVARIUM_TEST_NETWORK";

/// Who lives in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The chain, the store, the stewards and the test.
    World,
    Provider1,
    Provider2,
    Customers,
}

const PLACES: [Place; 4] = [Place::World, Place::Provider1, Place::Provider2, Place::Customers];

impl Place {
    pub fn of_provider(daemon: &str) -> Self {
        match daemon {
            "provider-1" => Self::Provider1,
            "provider-2" => Self::Provider2,
            other => panic!("{other} has no place of its own"),
        }
    }

    fn number(self) -> usize {
        PLACES.iter().position(|place| *place == self).expect("one of them")
    }

    fn address(self) -> String {
        match self {
            Self::World => "127.0.0.1".to_owned(),
            other => format!("127.0.1.{}", other.number()),
        }
    }

    /// Of a link between two of them, this one's address.
    fn on_link_to(self, other: Self) -> String {
        let (low, high) = (self.number().min(other.number()), self.number().max(other.number()));
        format!("10.77.{}.{}", 10 * low + high, 1 + u8::from(self.number() == high))
    }

    fn device_to(self, other: Self) -> String {
        format!("to-{}", other.number())
    }
}

/// Runs this test again in a network of its own, with [`MARK`] set. Without root or iproute2 it says that it is skipped.
pub fn run_in_its_own(test: &str) {
    if let Err(why) = is_possible() {
        return eprintln!("life: {test} is SKIPPED: {why}");
    }
    let mark = std::process::id().to_string();
    let run = Command::new("unshare")
        .args(["--net", "--mount", "--"])
        .arg(std::env::current_exe().expect("this test's file"))
        .args([test, "--exact", "--nocapture"])
        .env(MARK, &mark)
        .stdout(Stdio::null())
        .status()
        .expect("unshare runs");
    // Whatever became of it: names are files.
    for place in PLACES {
        let _ = Command::new("ip").args(["netns", "del", &name(place, &mark)]).stderr(Stdio::null()).status();
    }
    assert!(run.success(), "{test} failed in its network");
}

fn is_possible() -> Result<(), String> {
    let runs = |program: &str, args: &[&str]| {
        let ran = Command::new(program).args(args).output().map_err(|e| format!("{program} does not run ({e})"))?;
        let said = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
        if ran.status.success() { Ok(()) } else { Err(format!("{program} {args:?}: {said}")) }
    };
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces with links between them need root".to_owned());
    }
    runs("ip", &["-V"]).map_err(|why| format!("{why}; install iproute2"))?;
    runs("unshare", &["--net", "--mount", "--", "ip", "link", "add", "name", "to-1", "type", "veth"])
}

fn name(place: Place, mark: &str) -> String {
    format!("vivarium-{mark}-{}", place.number())
}

/// The four, with all links up.
pub struct Network {
    mark: String,
}

impl Network {
    /// Of the namespace in which this process runs, which is the world's.
    pub fn make() -> Self {
        let mark = std::env::var(MARK).expect("run_in_its_own");
        let network = Self { mark };
        for place in PLACES {
            network.settle(place);
        }
        for (number, low) in PLACES.iter().enumerate() {
            for high in &PLACES[number + 1..] {
                network.link(*low, *high);
            }
        }
        network
    }

    /// The flags by which a world's providers live in it.
    pub fn flags(&self) -> Vec<String> {
        let at = |daemon: &str| {
            let place = Place::of_provider(daemon);
            format!("--place={daemon}={}@{}", place.address(), name(place, &self.mark))
        };
        ["provider-1", "provider-2"].map(at).to_vec()
    }

    /// A program that runs there.
    pub fn command(&self, place: Place, program: &str) -> Command {
        if place == Place::World {
            return Command::new(program);
        }
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &name(place, &self.mark), program]);
        command
    }

    /// What `from` sends to `to`, and what comes back, is lost from now on.
    pub fn cut(&self, from: Place, to: Place) {
        self.ip(to, &["link", "set", &to.device_to(from), "down"]);
    }

    pub fn mend(&self, from: Place, to: Place) {
        self.ip(to, &["link", "set", &to.device_to(from), "up"]);
        // The kernel forgets the way over a device that is down.
        self.lead(to, from);
    }

    fn settle(&self, place: Place) {
        if place != Place::World {
            done(Command::new("ip").args(["netns", "add", &name(place, &self.mark)]));
        }
        self.ip(place, &["link", "set", "lo", "up"]);
        // One address alone, so that the others of its kind can be elsewhere.
        self.ip(place, &["addr", "flush", "dev", "lo"]);
        self.ip(place, &["addr", "add", &format!("{}/32", place.address()), "dev", "lo"]);
        let knob = "/proc/sys/net/ipv4/conf/all/route_localnet";
        match place {
            Place::World => fs::write(knob, "1").expect("root may"),
            _ => done(self.command(place, "sh").args(["-c", &format!("echo 1 > {knob}")])),
        }
    }

    fn link(&self, low: Place, high: Place) {
        let (near, far) = (low.device_to(high), high.device_to(low));
        let there = name(high, &self.mark);
        self.ip(low, &["link", "add", "name", &near, "type", "veth", "peer", "name", &far, "netns", &there]);
        for (here, there) in [(low, high), (high, low)] {
            let device = here.device_to(there);
            self.ip(here, &["addr", "add", &format!("{}/30", here.on_link_to(there)), "dev", &device]);
            self.ip(here, &["link", "set", &device, "up"]);
        }
        self.lead(low, high);
        self.lead(high, low);
    }

    /// Packets for `to` take the link.
    fn lead(&self, from: Place, to: Place) {
        let (to_address, next, source) = (to.address(), to.on_link_to(from), from.address());
        self.ip(from, &["route", "replace", &to_address, "via", &next, "src", &source]);
    }

    fn ip(&self, place: Place, args: &[&str]) {
        let mut command = Command::new("ip");
        if place != Place::World {
            command.args(["-n", &name(place, &self.mark)]);
        }
        done(command.args(args));
    }
}

fn done(command: &mut Command) {
    let ran = command.output().expect("it runs");
    assert!(ran.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

impl Drop for Network {
    fn drop(&mut self) {
        for place in PLACES.into_iter().filter(|place| *place != Place::World) {
            let _ = Command::new("ip").args(["netns", "del", &name(place, &self.mark)]).status();
        }
    }
}
