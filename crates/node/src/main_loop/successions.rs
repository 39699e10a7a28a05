//! Who leads when moves, takeovers and processes cross.

use super::tests::{block, node};
use super::*;
use crate::error::Kind;
use std::path::Path;

/// The old lease of a move.
const OLD: u64 = 1;

/// On this lease, and what its loop would hear.
fn host(dir: &Path, lease: u64) -> (Node, mpsc::Receiver<Event>) {
    let (mut node, heard) = node(dir);
    let cx = Arc::get_mut(&mut node.cx).expect("its only owner");
    (cx.config.lease, cx.birth.timers.restoreTimeout) = (lease, 3_600);
    (node, heard)
}

/// Others may have led in between: its journal is not what it must go on from.
#[tokio::test]
async fn a_former_operator_that_is_named_in_a_later_epoch_starts_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _heard) = host(dir.path(), OLD);
    node.on_chain(block(&node, 1, 1, (1, true))).unwrap();
    node.on_chain(block(&node, 2, 2, (2, false))).unwrap();
    let ended = node.on_chain(block(&node, 3, 3, (3, true))).unwrap_err();
    assert_eq!((node.role, ended.kind), (Role::Draining, Kind::Retry), "{ended}");
}
