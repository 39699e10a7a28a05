//! The market where the agent buys gas, which is all the thief's: a pool behind SwapRouter02's ABI that gives what the
//! thief says, and beside it an honest price feed: the stand-ins of the contracts' own tests.

use super::doubles::{DOUBLES, feed, setCall};
use alloy::primitives::aliases::U24;
use alloy::primitives::{Address, Bytes, I256, U256};
use alloy::sol_types::{SolCall, SolValue};
use chain::bindings::GasMarket;
use sim::World;

/// USD for one ether, with the feed's eight decimals. A round figure: what an ether costs decides nothing here but how
/// much of it the day limit buys.
const PRICE_E8: u64 = 300_000_000_000;
/// What an honest pool gives at that price.
const WEI_PER_MICRO_USDC: u128 = 1_000_000_000_000_000_000 * 100_000_000 / (PRICE_E8 as u128 * 1_000_000);
const SLIPPAGE_BPS: u16 = 100;
/// The least that birth allows: a thief moves its pool just so far.
const WORST: u128 = WEI_PER_MICRO_USDC * (10_000 - SLIPPAGE_BPS as u128) / 10_000 + 1;

/// Whoever puts them there and keeps the feed.
const KEEPER: Address = Address::repeat_byte(0xdd);

/// Puts feed and pool on the chain, and into the terms of the birth to come.
pub fn open(world: &mut World) {
    let usdc = world.at.usdc;
    let mut create = |name: &str, arguments: Vec<u8>| {
        let code = Bytes::from([DOUBLES[name].clone(), arguments].concat());
        world.evm.create(KEEPER, code).expect("a stand-in of the contracts' tests")
    };
    let weth = create("WethDouble", Vec::new());
    let oracle = create("FeedDouble", U256::from(8).abi_encode());
    let router = create("RouterDouble", (weth, usdc).abi_encode());
    world.evm.set_wei(router, u128::MAX / 4);
    world.terms.options.gas = GasMarket {
        router,
        weth,
        oracle,
        sequencer: Address::ZERO,
        poolFee: U24::from(500),
        slippageBps: SLIPPAGE_BPS,
        staleAfter: 7_200,
    };
    world.evm.call(KEEPER, router, turn(WORST), 0).expect("anybody turns it");
    quote(world);
}

/// The feed's price, as of now.
pub fn quote(world: &mut World) {
    let now = U256::from(world.evm.now());
    let answer = I256::try_from(PRICE_E8).expect("positive");
    let call = feed::setCall { answer, startedAt: now, updatedAt: now };
    let oracle = world.terms.options.gas.oracle;
    world.evm.call(KEEPER, oracle, call.abi_encode(), 0).expect("anybody sets it");
}

/// Wei that this much buys at the feed's price.
pub fn worth(micro_usdc: u128) -> u128 {
    micro_usdc * (WEI_PER_MICRO_USDC + 1)
}

/// The call that makes the pool give this much for a micro-USDC, whatever the buyer's minimum.
fn turn(wei_per_micro_usdc: u128) -> Bytes {
    setCall { rate: U256::from(wei_per_micro_usdc), honest: false }.abi_encode().into()
}

/// Where a thief would turn the pool to: to where it gives nothing, a little too far, and as far as birth allows.
pub fn turns() -> [Bytes; 3] {
    [0, WORST - 2, WORST].map(turn)
}
