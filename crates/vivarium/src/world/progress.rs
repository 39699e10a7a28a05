//! What a person at the terminal sees: one line for each step, with its time when it took over a second.

use anyhow::ensure;
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// A step that is over by then gets no "…".
const SILENCE: Duration = Duration::from_secs(1);

/// Shows `text` at the terminal and asks; only `yes` is a yes.
///
/// # Errors
/// Nobody is there to answer: nothing is shown then.
pub fn ask(text: &str) -> anyhow::Result<bool> {
    ensure!(std::io::stdin().is_terminal(), "this asks before it acts; say --yes if nobody is there to answer");
    print!("{text} Type yes: ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

/// Where progress goes. Tests are silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Shown,
    Silent,
}

impl Progress {
    /// Runs `work`; announces it once it has lasted a second and says at the end how long it took.
    pub async fn step<T, E>(self, what: &str, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut work = std::pin::pin!(work);
        let started = Instant::now();
        match timeout(SILENCE, &mut work).await {
            Ok(outcome) => {
                if outcome.is_ok() {
                    self.line(&format!("  {what}"));
                }
                outcome
            }
            Err(_) => {
                self.write(&format!("  {what} … "));
                let outcome = work.await;
                match &outcome {
                    Ok(_) => self.line(&format!("{:.1} s", started.elapsed().as_secs_f32())),
                    Err(_) => self.line("failed"),
                }
                outcome
            }
        }
    }

    pub fn line(self, text: &str) {
        self.write(&format!("{text}\n"));
    }

    fn write(self, text: &str) {
        if self == Self::Shown {
            let mut out = std::io::stdout().lock();
            // A closed terminal must not end the world: its processes are stopped in order by the signal that follows.
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        }
    }
}
