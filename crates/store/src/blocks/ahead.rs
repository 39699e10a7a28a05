use super::Blocks;
use crate::cid::Cid;
use crate::error::{Error, Result};
use std::num::NonZero;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

/// Blocks between the thread that makes them and the one that stores them: 8 MiB of the profile's chunks. More would
/// only hide a disk that is too slow.
const AHEAD: usize = 8;
/// Threads that check blocks; each holds one. More than there are cores of a small host bring nothing.
const CHECKERS_MAX: usize = 4;

/// Runs `make`, whose blocks are stored by a thread beside it: the next chunk is read and hashed while the last one
/// is written. `make` must have named each block by its own bytes; they are not hashed again, and not synced.
///
/// Fails with what storing failed with, else with what `make` failed with.
pub(crate) fn store_ahead<T>(
    blocks: &Blocks,
    make: impl FnOnce(&mut dyn FnMut(Cid, Vec<u8>) -> Result<()>) -> Result<T>,
) -> Result<T> {
    thread::scope(|scope| {
        let (send, receive) = sync_channel::<(Cid, Vec<u8>)>(AHEAD);
        let storing = scope.spawn(move || receive.iter().try_for_each(|(cid, bytes)| blocks.put_named(&cid, &bytes)));
        let made = make(&mut |cid, bytes| send.send((cid, bytes)).map_err(|_| Error::bug("storing has ended early")));
        drop(send);
        storing.join().map_err(|_| Error::bug("the storing thread panicked"))??;
        made
    })
}

/// Hands each of the CIDs that `feed` gives out to one of a few threads, which each run `check` on it.
///
/// Fails with the first failure of `check`, else with that of `feed`. Order is not kept.
pub(crate) fn check_each<T>(
    feed: impl FnOnce(&mut dyn FnMut(Cid) -> Result<()>) -> Result<T>,
    check: impl Fn(Cid) -> Result<()> + Sync,
) -> Result<T> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(CHECKERS_MAX);
    thread::scope(|scope| {
        let (send, receive) = sync_channel(threads);
        // Shared by the checkers alone: when all of them have failed, sending fails too instead of waiting for ever.
        let receive = Arc::new(Mutex::new(receive));
        let check = &check;
        let checkers: Vec<_> = (0..threads)
            .map(|_| {
                let receive = receive.clone();
                scope.spawn(move || {
                    while let Some(cid) = next(&receive) {
                        check(cid)?;
                    }
                    Ok(())
                })
            })
            .collect();
        drop(receive);
        let fed = feed(&mut |cid| send.send(cid).map_err(|_| Error::bug("checking has ended early")));
        drop(send);
        let ended: Vec<Result<()>> = checkers
            .into_iter()
            .map(|checker| checker.join().unwrap_or_else(|_| Err(Error::bug("a checking thread panicked"))))
            .collect();
        ended.into_iter().collect::<Result<()>>()?;
        fed
    })
}

/// The lock is held while waiting: whoever waits next would wait for the same channel anyway.
fn next(receive: &Mutex<Receiver<Cid>>) -> Option<Cid> {
    receive.lock().ok()?.recv().ok()
}
