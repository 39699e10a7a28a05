//! What is refused before anything runs: the wrong chain, contracts that are not what they are taken for, a quorum that
//! can never speak, timers that do not fit, clocks that disagree. Each refusal says which and why.

use alloy::{eips::BlockId, primitives::Address};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{
    bindings::price_feed::{decimalsCall, latestRoundDataCall, latestRoundDataReturn},
    bindings::{Birth, GasMarket, LeaseMarket, Options, TestUSDC, Timers, TreasuryFactory},
    error::Error,
    market::MarketTerms,
    rpc::{Chain, foreign},
    safe::Safe,
};

/// The id that development chains have. Their time stands still while they are stopped, so it is not compared with ours.
pub const DEVELOPMENT_CHAIN: u64 = 31337;

/// Seconds that the newest block may lie behind this host's clock. A choice: public chains make a block in seconds, and
/// an outage of ten minutes is one in which nobody should start to sign.
const BEHIND_SECS_MAX: u64 = 600;

/// Seconds that it may lie ahead. Consensus lets a block's time run ahead by 15 s at most, and clocks drift.
const AHEAD_SECS_MAX: u64 = 60;

/// As `GasPrice.SEQUENCER_GRACE`.
const SEQUENCER_GRACE_SECS: u64 = 3_600;

/// Between these a price of an ether is believed before a birth. Guesses, wide ones.
const ETHER_DOLLARS_MIN: u128 = 100;
const ETHER_DOLLARS_MAX: u128 = 100_000;

/// As `BirthRules.TIMER_MIN`.
const TIMER_SECS_MIN: u32 = 3;

impl Chain {
    /// Refuses a token that is not there or does not count in millionths.
    ///
    /// # Errors
    /// `Missing`, or `Rpc`.
    pub async fn verify_token(&self, token: Address) -> Result<(), Error> {
        self.verify_code("token", token).await?;
        let decimals = foreign("token", token, self.read(token, TestUSDC::decimalsCall {}, BlockId::latest()).await)?;
        if decimals != 6 {
            return Err(Error::missing(format!("the token at {token} has {decimals} decimals and not 6: not USDC")));
        }
        Ok(())
    }

    /// Refuses a market that is not there or deals in another token.
    ///
    /// # Errors
    /// `Missing`, or `Rpc`.
    pub async fn verify_market(&self, market: Address, token: Address) -> Result<(), Error> {
        self.verify_code("lease market", market).await?;
        let at = BlockId::latest();
        let trades = foreign("lease market", market, self.read(market, LeaseMarket::tokenCall {}, at).await)?;
        if trades != token {
            return Err(Error::missing(format!("the lease market at {market} trades in {trades}, not in {token}")));
        }
        Ok(())
    }

    /// Refuses a treasury factory that is none.
    ///
    /// # Errors
    /// `Missing`, or `Rpc`.
    pub async fn verify_factory(&self, factory: Address) -> Result<(), Error> {
        self.verify_code("treasury factory", factory).await?;
        let made = self.read(factory, TreasuryFactory::implementationCall {}, BlockId::latest()).await;
        foreign("treasury factory", factory, made).map(drop)
    }

    /// Refuses a market for gas that could sell nothing now: contracts that are not there, a price that is old or absurd, a
    /// sequencer that is down or came back less than an hour ago. Whether the pool has ether to sell is not looked at.
    ///
    /// # Errors
    /// `Missing`, `Unfit`, or `Rpc`.
    pub async fn verify_gas_market(&self, market: &GasMarket) -> Result<(), Error> {
        for (what, at) in [("router", market.router), ("wrapped ether", market.weth), ("price feed", market.oracle)] {
            self.verify_code(what, at).await?;
        }
        let at = BlockId::latest();
        let now = self.head().await?.timestamp;
        let feed = market.oracle;
        let decimals = foreign("price feed", feed, self.read(feed, decimalsCall {}, at).await)?;
        let price = foreign("price feed", feed, self.read(feed, latestRoundDataCall {}, at).await)?;
        check_price(&price, decimals, market.staleAfter, now)?;
        if market.sequencer.is_zero() {
            return Ok(());
        }
        self.verify_code("sequencer's uptime feed", market.sequencer).await?;
        let up = self.read(market.sequencer, latestRoundDataCall {}, at).await;
        let up = foreign("sequencer's uptime feed", market.sequencer, up)?;
        let since = now.saturating_sub(up.startedAt.saturating_to());
        match up.answer.is_zero() && since >= SEQUENCER_GRACE_SECS {
            true => Ok(()),
            false => Err(Error::unfit(format!(
                "the chain's sequencer is down or back for {since} s only, by {}: wait until it is up for an hour",
                market.sequencer
            ))),
        }
    }

    /// Refuses an agent that could not live on this chain: a treasury, market or token that is none, a quorum that can
    /// never speak, timers that do not fit. Returns what was fixed at its birth.
    ///
    /// # Errors
    /// `WrongChain`, `Missing`, `Unfit`, or `Rpc`.
    pub async fn verify_agent(&self, treasury: Address) -> Result<Birth, Error> {
        self.verify_chain().await?;
        let client = self.treasury(treasury);
        client.verify().await?;
        let birth = client.birth().await?;
        self.verify_token(birth.token).await?;
        self.verify_market(birth.market, birth.token).await?;
        let terms = self.market(birth.market).terms().await?;
        check_timers(&birth.timers, &birth.options, &terms)?;
        let mut safes = Vec::new();
        for steward in &birth.stewards {
            safes.extend(self.safe(*steward).await?);
        }
        check_quorum(birth.threshold, &birth.stewards, &safes)?;
        Ok(birth)
    }

    /// Refuses to go on where this host's clock and a public chain's newest block disagree: one of the two is wrong, and
    /// both leases and vouchers are reckoned in chain time.
    ///
    /// # Errors
    /// `Unfit` with the difference, or `Rpc`.
    pub async fn verify_clock(&self) -> Result<(), Error> {
        if self.chain_id() == DEVELOPMENT_CHAIN {
            return Ok(());
        }
        let host = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        check_clock(self.head().await?.timestamp, host)
    }
}

/// As the contract reads it (`GasPrice.sol`), and within what an ether ever cost or is likely to: a feed of another pair
/// has a price, too.
fn check_price(price: &latestRoundDataReturn, decimals: u8, stale_after: u32, now: u64) -> Result<(), Error> {
    let updated: u64 = price.updatedAt.saturating_to();
    let age = now.saturating_sub(updated);
    if updated == 0 || updated > now || age > u64::from(stale_after) {
        return Err(Error::unfit(format!("the price of an ether is {age} s old; `stale_after_secs` is {stale_after}")));
    }
    let dollars = u128::try_from(price.answer).unwrap_or(0) / 10_u128.checked_pow(decimals.into()).unwrap_or(u128::MAX);
    if !(ETHER_DOLLARS_MIN..=ETHER_DOLLARS_MAX).contains(&dollars) {
        return Err(Error::unfit(format!("an ether costs {dollars} dollars by the price feed: is it another pair's?")));
    }
    Ok(())
}

/// Both in seconds since 1970.
fn check_clock(chain: u64, host: u64) -> Result<(), Error> {
    if chain > host + AHEAD_SECS_MAX {
        let apart = chain - host;
        return Err(Error::unfit(format!("this host's clock is {apart} s behind the chain's newest block: set it")));
    }
    if host > chain + BEHIND_SECS_MAX {
        let apart = host - chain;
        return Err(Error::unfit(format!(
            "the chain's newest block is {apart} s old by this host's clock: the endpoint lags, or the clock is ahead"
        )));
    }
    Ok(())
}

/// As the factory checks them at a birth; a treasury of another factory may have others.
fn check_timers(t: &Timers, options: &Options, market: &MarketTerms) -> Result<(), Error> {
    let secs = u64::from;
    let takeover = secs(t.answerTime) + secs(t.restoreTimeout);
    let all = [
        t.day,
        t.heartbeatEvery,
        t.fence,
        t.answerTime,
        t.handoverNotice,
        t.restoreTimeout,
        t.silence,
        t.starveTimeout,
        t.activateWithin,
        t.refundWindow,
    ];
    let channels = !options.channels.is_zero();
    let pairs = [
        ("timers >= 3 s", all.iter().all(|timer| *timer >= TIMER_SECS_MIN)),
        ("heartbeatEvery < fence", t.heartbeatEvery < t.fence),
        ("fence < answerTime", t.fence < t.answerTime),
        ("answerTime + restoreTimeout <= market grace", takeover <= secs(market.grace)),
        ("market grace <= dropAfter", market.grace <= market.drop_after),
        ("delay >= day", options.delay == 0 || options.delay >= t.day),
        (
            "withdrawDelay >= answerTime + restoreTimeout + silence + day",
            !channels || secs(options.withdrawDelay) >= takeover + secs(t.silence) + secs(t.day),
        ),
    ];
    match pairs.into_iter().find(|(_, holds)| !holds) {
        Some((pair, _)) => Err(Error::unfit(format!("the treasury's timers do not fit: {pair} fails"))),
        None => Ok(()),
    }
}

/// `safes` are those of the stewards that are contracts.
fn check_quorum(threshold: u8, stewards: &[Address], safes: &[Safe]) -> Result<(), Error> {
    if threshold == 0 || usize::from(threshold) > stewards.len() {
        return Err(Error::unfit(format!("{threshold} of {} stewards must sign: that can never be", stewards.len())));
    }
    if let Some(safe) = safes.iter().find(|safe| safe.owners.len() < safe.threshold) {
        return Err(Error::unfit(format!(
            "the Safe {} has {} owners and asks for {} signatures: it can never speak",
            safe.address,
            safe.owners.len(),
            safe.threshold
        )));
    }
    if threshold > 1 {
        return Ok(());
    }
    // One steward is a quorum only if it is more than one person.
    match safes {
        [safe] if stewards == [safe.address] && safe.threshold >= 2 => Ok(()),
        [safe] => Err(Error::unfit(format!(
            "one owner of the Safe {} commands it alone: a quorum is at least two",
            safe.address
        ))),
        _ => Err(Error::unfit("one key alone could command the agent: a quorum is at least two")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::{I256, U256, aliases::U80};

    fn said(outcome: Result<(), Error>) -> String {
        outcome.map_or_else(|e| e.to_string(), |()| "fits".into())
    }

    #[test]
    fn clocks_that_disagree_say_which_way() {
        assert_eq!(said(check_clock(1_000, 1_000)), "fits");
        assert_eq!(said(check_clock(1_060, 1_000)), "fits");
        assert_eq!(said(check_clock(1_000, 1_600)), "fits");
        assert_eq!(
            said(check_clock(1_061, 1_000)),
            "this host's clock is 61 s behind the chain's newest block: set it"
        );
        assert_eq!(
            said(check_clock(1_000, 1_601)),
            "the chain's newest block is 601 s old by this host's clock: the endpoint lags, or the clock is ahead"
        );
    }

    #[test]
    fn a_price_that_is_old_or_of_another_pair_is_refused() {
        let at = |answer: i64, updated: u64| latestRoundDataReturn {
            answer: I256::try_from(answer).expect("fits"),
            updatedAt: U256::from(updated),
            roundId: U80::ZERO,
            startedAt: U256::ZERO,
            answeredInRound: U80::ZERO,
        };
        let now = 1_000_000;
        assert_eq!(said(check_price(&at(244_809_306_508, now - 3_600), 8, 3_600, now)), "fits");
        for (price, expected) in [
            (at(244_809_306_508, now - 3_601), "the price of an ether is 3601 s old; `stale_after_secs` is 3600"),
            (at(244_809_306_508, now + 1), "the price of an ether is 0 s old; `stale_after_secs` is 3600"),
            (at(99_999_999, now), "an ether costs 0 dollars by the price feed: is it another pair's?"),
            (at(-1, now), "an ether costs 0 dollars by the price feed: is it another pair's?"),
            (at(11_000_000_000_000, now), "an ether costs 110000 dollars by the price feed: is it another pair's?"),
        ] {
            assert_eq!(said(check_price(&price, 8, 3_600, now)), expected);
        }
    }

    #[test]
    fn a_quorum_that_can_never_speak_or_is_one_person_is_refused() {
        let [a, b, c] = [1, 2, 3].map(Address::repeat_byte);
        let safe = |address, owners: &[Address], threshold| Safe { address, owners: owners.to_vec(), threshold };
        for (threshold, stewards, safes, expected) in [
            (2, vec![a, b, c], vec![], "fits"),
            (1, vec![a], vec![safe(a, &[b, c], 2)], "fits"),
            (2, vec![a, b], vec![safe(a, &[c], 1)], "fits"),
            (3, vec![a, b], vec![], "3 of 2 stewards must sign: that can never be"),
            (0, vec![a], vec![], "0 of 1 stewards must sign: that can never be"),
            (1, vec![a], vec![], "one key alone could command the agent: a quorum is at least two"),
            (1, vec![a, b], vec![], "one key alone could command the agent: a quorum is at least two"),
        ] {
            assert_eq!(said(check_quorum(threshold, &stewards, &safes)), expected);
        }
        let few = said(check_quorum(1, &[a], &[safe(a, &[b], 2)]));
        assert!(few.ends_with("has 1 owners and asks for 2 signatures: it can never speak"), "{few}");
        let alone = said(check_quorum(1, &[a], &[safe(a, &[b, c], 1)]));
        assert!(alone.contains("commands it alone"), "{alone}");
    }

    #[test]
    fn the_failing_pair_of_timers_is_named() {
        let good = Timers {
            day: 20,
            heartbeatEvery: 3,
            fence: 8,
            answerTime: 12,
            handoverNotice: 3,
            restoreTimeout: 20,
            silence: 26,
            starveTimeout: 15,
            activateWithin: 90,
            refundWindow: 6,
        };
        let market = MarketTerms { stake_min: U256::ZERO, ready_within: 45, grace: 34, drop_after: 40 };
        let options = Options { channels: Address::repeat_byte(1), withdrawDelay: 78, ..Options::default() };
        assert_eq!(said(check_timers(&good, &options, &market)), "fits");
        for (timers, options, market, pair) in [
            (Timers { silence: 2, ..good.clone() }, options.clone(), market, "timers >= 3 s"),
            (Timers { heartbeatEvery: 8, ..good.clone() }, options.clone(), market, "heartbeatEvery < fence"),
            (Timers { fence: 12, ..good.clone() }, options.clone(), market, "fence < answerTime"),
            (good.clone(), options.clone(), MarketTerms { grace: 31, ..market }, "restoreTimeout <= market grace"),
            (good.clone(), options.clone(), MarketTerms { drop_after: 33, ..market }, "market grace <= dropAfter"),
            (good.clone(), Options { delay: 19, ..options.clone() }, market, "delay >= day"),
            (good.clone(), Options { withdrawDelay: 77, ..options.clone() }, market, "withdrawDelay >="),
        ] {
            let said = said(check_timers(&timers, &options, &market));
            assert!(said.contains("do not fit") && said.contains(pair), "{said}");
        }
    }
}
