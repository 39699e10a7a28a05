//! Somebody who has an agent's dashboard open, and what it shows.

use crate::world::project;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// The page as its own script runs it, in `tests/clients/dashboard.mjs`.
pub struct Dashboard {
    page: Child,
    shown: Arc<Mutex<Vec<Value>>>,
}

impl Dashboard {
    pub fn open(url: &str) -> Self {
        let mut page = Command::new("node")
            .args(["dashboard.mjs", url])
            .current_dir(project().join("tests/clients"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node runs");
        let (shown, lines) =
            (Arc::<Mutex<Vec<Value>>>::default(), BufReader::new(page.stdout.take().expect("its words")));
        let show = shown.clone();
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e} in {line}"));
                show.lock().expect("no writer panics").push(line);
            }
        });
        Self { page, shown }
    }

    /// Everything so far, in its order.
    pub fn shown(&self) -> Vec<Value> {
        self.shown.lock().expect("no writer panics").clone()
    }

    /// Where in that order a line of the agent's log says so.
    pub fn told(&self, words: &str) -> Option<usize> {
        self.shown().iter().position(|line| line["event"].as_str().is_some_and(|event| event.contains(words)))
    }

    /// What nobody should have to see: a page that lost its agent, a script that failed.
    pub fn trouble(&self) -> Vec<Value> {
        let is_trouble =
            |line: &Value| line.get("broke").is_some() || line.get("error").is_some() || line["role"] == "reconnecting";
        self.shown().into_iter().filter(is_trouble).collect()
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        let _ = self.page.kill();
        let _ = self.page.wait();
    }
}
