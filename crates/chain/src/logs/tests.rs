use super::*;
use alloy::{
    primitives::{U256, keccak256},
    sol_types::SolValue,
};

fn sources() -> Sources {
    let [treasury, market, usdc] = [1, 2, 3].map(Address::repeat_byte);
    Sources { treasury, market, usdc }
}

/// A chain of blocks named by (height, branch); each block carries one transfer whose amount is 1000·height + branch.
struct Fake {
    blocks: BTreeMap<B256, Head>,
}

impl Fake {
    fn hash(number: u64, branch: u64) -> B256 {
        keccak256((number, branch).abi_encode())
    }

    /// Adds heights `first..=last` of `branch`, hanging on `parent_branch`.
    fn grow(&mut self, first: u64, last: u64, branch: u64, parent_branch: u64) -> Head {
        let mut parent = Self::hash(first.wrapping_sub(1), parent_branch);
        for number in first..=last {
            let hash = Self::hash(number, branch);
            self.blocks.insert(hash, Head { number, hash, parent, timestamp: number, base_fee: branch.into() });
            parent = hash;
        }
        self.blocks[&parent]
    }

    fn log(&self, core: &LogCore, block: &Head) -> ChainLog {
        let Sources { treasury, usdc, .. } = sources();
        let value = U256::from(u128::from(block.number) * 1_000 + block.base_fee);
        let event = TestUSDC::Transfer { from: Address::repeat_byte(9), to: treasury, value };
        let data = event.encode_log_data();
        core.decode(&Log {
            inner: alloy::primitives::Log { address: usdc, data },
            block_hash: Some(block.hash),
            block_number: Some(block.number),
            transaction_hash: Some(B256::ZERO),
            log_index: Some(0),
            ..Default::default()
        })
        .expect("complete")
        .expect("to the treasury")
    }

    /// What `LogReader::poll` does, with the fake in place of RPC.
    fn poll(&self, core: &mut LogCore, head: Head) -> Result<Vec<i64>, Error> {
        let (mut out, mut headers) = (Vec::new(), BTreeMap::new());
        loop {
            match core.plan(head, &headers)? {
                Step::Nothing => break,
                Step::NeedHeader(hash) => drop(headers.insert(hash, self.blocks[&hash])),
                Step::Range { first, last } => {
                    let logs = (first..=last).map(|n| self.log(core, &self.blocks[&Self::hash(n, 0)])).collect();
                    core.extend_range(last, logs, &mut out);
                }
                Step::Branch { blocks } => {
                    core.revert_from(blocks[0].number, &mut out);
                    for block in &blocks {
                        let log = self.log(core, block);
                        core.extend(block, vec![log], &mut out);
                    }
                    break;
                }
            }
        }
        Ok(out.into_iter().filter_map(amount).collect())
    }
}

/// The amount of a log, negative when it was taken back.
fn amount(item: LogItem) -> Option<i64> {
    let (sign, log) = match item {
        LogItem::Emitted(log) => (1, log),
        LogItem::Reverted(log) => (-1, log),
        LogItem::TakenBack { .. } => return None,
    };
    match log.event {
        Event::Transfer { amount, .. } => Some(sign * i64::try_from(amount).expect("small")),
        other => panic!("no transfer: {other:?}"),
    }
}

fn fake() -> (Fake, LogCore) {
    (Fake { blocks: BTreeMap::new() }, LogCore::new(sources(), 5))
}

/// What was read of contracts in such a block is to be read again, too.
#[test]
fn blocks_that_are_taken_back_are_told_without_any_log() {
    let (_, mut core) = fake();
    let mut out = Vec::new();
    for number in 5..8 {
        let (hash, parent) = (Fake::hash(number, 0), Fake::hash(number - 1, 0));
        core.extend(&Head { number, hash, parent, timestamp: 0, base_fee: 0 }, Vec::new(), &mut out);
    }
    core.revert_from(6, &mut out);
    core.revert_from(6, &mut out);
    assert_eq!(out, [LogItem::TakenBack { from: 6 }]);
}

#[test]
fn blocks_are_reported_once_and_in_order() {
    let (mut fake, mut core) = fake();
    let head = fake.grow(1, 7, 0, 0);
    assert_eq!(fake.poll(&mut core, head).expect("no reorg"), [5_000, 6_000, 7_000]);
    assert_eq!(fake.poll(&mut core, head).expect("no reorg"), [] as [i64; 0]);
    let next = fake.grow(8, 8, 0, 0);
    assert_eq!(fake.poll(&mut core, next).expect("no reorg"), [8_000]);
    // A lagging endpoint is no reorg.
    assert_eq!(fake.poll(&mut core, head).expect("no reorg"), [] as [i64; 0]);
}

#[test]
fn a_reorg_takes_back_newest_first_and_then_reports_the_branch() {
    let (mut fake, mut core) = fake();
    let head = fake.grow(1, 9, 0, 0);
    fake.poll(&mut core, head).expect("no reorg");
    let branch = fake.grow(8, 10, 1, 0);
    let items = fake.poll(&mut core, branch).expect("shallow");
    assert_eq!(items, [-9_000, -8_000, 8_001, 9_001, 10_001]);
    // And back again, to a longer first branch.
    let back = fake.grow(10, 11, 0, 0);
    let items = fake.poll(&mut core, back).expect("shallow");
    assert_eq!(items, [-10_001, -9_001, -8_001, 8_000, 9_000, 10_000, 11_000]);
}

#[test]
fn a_branch_of_equal_height_replaces() {
    let (mut fake, mut core) = fake();
    let head = fake.grow(1, 6, 0, 0);
    fake.poll(&mut core, head).expect("no reorg");
    let branch = fake.grow(6, 6, 1, 0);
    assert_eq!(fake.poll(&mut core, branch).expect("shallow"), [-6_000, 6_001]);
}

#[test]
fn the_very_first_block_may_be_reorged_away() {
    let (mut fake, mut core) = fake();
    let head = fake.grow(1, 6, 0, 0);
    fake.poll(&mut core, head).expect("no reorg");
    let branch = fake.grow(3, 7, 1, 0);
    assert_eq!(fake.poll(&mut core, branch).expect("shallow"), [-6_000, -5_000, 5_001, 6_001, 7_001]);
}

#[test]
fn the_window_is_as_deep_as_it_says() {
    let (mut fake, mut core) = fake();
    for number in 1..=100 {
        let head = fake.grow(number, number, 0, 0);
        fake.poll(&mut core, head).expect("no reorg");
    }
    let mut kept = core.clone();
    let deepest = fake.grow(101 - WINDOW, 101, 1, 0);
    let items = fake.poll(&mut core, deepest).expect("just deep enough");
    let gone = usize::try_from(WINDOW).expect("small");
    assert_eq!((items[0], items.len()), (-100_000, gone + gone + 1));
    let too_deep = fake.grow(100 - WINDOW, 101, 2, 0);
    let error = fake.poll(&mut kept, too_deep).expect_err("one too deep");
    assert_eq!(error.kind, crate::Kind::Unknown);
}

#[test]
fn far_behind_it_reads_ranges_and_then_blocks() {
    let (mut fake, mut core) = fake();
    let head = fake.grow(1, 3_000, 0, 0);
    let items = fake.poll(&mut core, head).expect("no reorg");
    assert_eq!(items, (5..=3_000).map(|n| n * 1_000).collect::<Vec<i64>>());
    let branch = fake.grow(2_940, 3_001, 1, 0);
    assert_eq!(fake.poll(&mut core, branch).expect("within the window")[0], -3_000_000);
}

#[test]
fn what_was_kept_takes_back_what_was_reported_before_the_restart() {
    let (mut fake, mut core) = fake();
    let head = fake.grow(1, 9, 0, 0);
    fake.poll(&mut core, head).expect("no reorg");
    let mut core = LogCore::from_bytes(&core.to_bytes(), sources()).expect("its own bytes");
    let branch = fake.grow(9, 10, 1, 0);
    assert_eq!(fake.poll(&mut core, branch).expect("shallow"), [-9_000, 9_001, 10_001]);
    assert!(LogCore::from_bytes(b"rubbish", sources()).is_err());
}

/// What an earlier run read of a block that is gone now must be taken back by whoever knows it, not read once more.
#[test]
fn a_branch_below_the_block_that_it_began_with_is_an_error() {
    let (mut fake, _) = fake();
    let head = fake.grow(1, 9, 0, 0);
    let begin = || LogCore::after(sources(), (5, Fake::hash(5, 0)));
    let mut core = begin();
    assert_eq!(core.next_block(), 6);
    assert_eq!(fake.poll(&mut core, head).expect("no reorg"), [6_000, 7_000, 8_000, 9_000]);
    let shallow = fake.grow(6, 10, 1, 0);
    assert_eq!(fake.poll(&mut core, shallow).expect("it hangs on the same block").len(), 4 + 5);
    let deep = fake.grow(5, 10, 2, 0);
    for mut core in [begin(), core] {
        assert_eq!(fake.poll(&mut core, deep).expect_err("its block is gone").kind, crate::Kind::Unknown);
    }
}
