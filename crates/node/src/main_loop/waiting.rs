//! Who waits for the main loop, and how many of them.

use super::tests::{block, node};
use super::*;
use crate::channels::Moved;
use crate::error::Kind;
use crate::paid_call;
use crate::settle::Settlement;
use pay::Usdc;
use pay::scheme::channel::{Deposit, DepositMethod};

/// More than may wait for anything.
const MANY: usize = 20;

/// A customer that asks for the end of its payment, or of its deposit, hangs up and asks again, as often as it likes.
#[tokio::test]
async fn whoever_hangs_up_and_asks_again_waits_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _heard) = node(dir.path());
    let request = paid_call::request([0xC1; 20], 1);
    let mut asks_for_settlement = || -> oneshot::Receiver<Settlement> {
        let (reply, answer) = oneshot::channel();
        node.on_ask(Ask::WhenSettled { request, blocks: 1, reply }).unwrap();
        answer
    };
    (0..MANY).for_each(|_| drop(asks_for_settlement()));
    let patient = [asks_for_settlement(), asks_for_settlement()];
    assert_eq!(node.settled_waiters[&request].len(), patient.len());

    let channel = ChannelId([7; 32]);
    let mut asks_for_deposit = || -> oneshot::Receiver<Moved> {
        let (reply, answer) = oneshot::channel();
        let (salt, signature) = ([0; 32], Vec::new());
        let method = DepositMethod::Eip3009 { valid_after: 0, valid_before: u64::MAX, salt, signature };
        let deposit = Deposit { amount: Usdc(10_000), method, is_signed_by_key: true };
        node.on_ask(Ask::PutIn { channel, deposit, another: None, reply }).unwrap();
        answer
    };
    (0..MANY).for_each(|_| drop(asks_for_deposit()));
    let patient = [asks_for_deposit(), asks_for_deposit()];
    assert_eq!(node.channel_waiters[&channel].len(), patient.len());
}

/// Whoever has the follower's token asks for the tail as often as it likes. The newest questions wait.
#[tokio::test]
async fn of_too_many_questions_for_the_tail_the_oldest_are_sent_away() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _heard) = node(dir.path());
    node.on_chain(block(&node, 1, 1, (1, true))).unwrap();
    node.successor = Some(("token".into(), node.cx.keys.exchange.recipient()));
    let after = node.live.as_ref().unwrap().durable;
    let mut asks = || {
        let (reply, answer) = oneshot::channel();
        node.on_peer(PeerAsk::Tail { after, token: "token".into(), reply }).unwrap();
        answer
    };
    let mut answers: Vec<_> = (0..MANY).map(|_| asks()).collect();
    let mut ends = answers.iter_mut().map(|answer| answer.try_recv().ok().map(|part| part.err().map(|e| e.kind)));
    let sent_away = ends.by_ref().take_while(Option::is_some).inspect(|end| assert_eq!(*end, Some(Some(Kind::Retry))));
    assert_eq!(sent_away.count(), MANY - moving::TAILS_WAITING_MAX);
    assert!(ends.all(|end| end.is_none()), "the others wait");
    // Those who have hung up make room.
    drop(ends);
    answers.clear();
    let answers: Vec<_> = (0..moving::TAILS_WAITING_MAX).map(|_| asks()).collect();
    assert!(answers.into_iter().all(|mut answer| answer.try_recv().is_err()));
}
