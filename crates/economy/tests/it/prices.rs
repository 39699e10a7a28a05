//! The price controller against demand that answers to the price: a price twice as high sells half as much (measured
//! elasticities are about 1.1, docs/what-breaks-first.md). It must neither swing nor starve.

use economy::{Agent, Genesis, Input, LeaseView, Limits, Policy, Stage, Timers, Usdc, View, Wishes};

/// Tokens that the host makes in an hour.
const CAPACITY: u64 = 100 * 3_600;
/// Micro-USDC an hour of both hosts: 0.9 USDC a day each.
const COST_HOUR: u128 = 2 * 900_000 / 24;
const NOW: u64 = 1_800_000_000;

struct Shop {
    agent: Agent,
    now: u64,
    lsn: u64,
    /// Micro-USDC a million tokens, by the hour.
    prices: Vec<u128>,
    sold: Vec<u64>,
}

impl Shop {
    fn open() -> Self {
        let timers = Timers::real();
        let wishes = Wishes {
            term: 30 * 86_400,
            prepay_secs: 2 * 86_400,
            margin_pct: 20,
            min_call: Usdc(1),
            max_call: Usdc(1_000_000_000),
            block_secs: 2,
        };
        let policy = Policy::new(wishes, &timers);
        let mut agent = Agent::new(Genesis { chain_id: 1, treasury: [4; 20], timers, policy });
        agent.step(NOW, 1, Input::Booted { epoch: 1, lease: 1, restored: false });
        agent.step(NOW, 2, Input::Throughput { milli_tokens_per_sec: 100_000 });
        agent.step(NOW, 3, Input::Block(Box::new(view(NOW))));
        let floor = agent.serving().expect("sells").mtok_completion_uusdc.0;
        Self { agent, now: NOW, lsn: 3, prices: vec![floor], sold: Vec::new() }
    }

    fn floor(&self) -> u128 {
        self.prices[0]
    }

    /// `wanted_pct`: of the capacity, at the floor's price.
    fn hour(&mut self, wanted_pct: u64) {
        let price = self.prices[self.prices.len() - 1];
        let wanted = u128::from(CAPACITY * wanted_pct / 100) * self.floor() / price;
        let tokens = u64::try_from(wanted).expect("small").min(CAPACITY);
        self.now += 3_600;
        self.lsn += 2;
        let sum = Usdc(u128::from(tokens) * price / 1_000_000);
        let earned = Input::Earned { first_lsn: self.lsn - 1, last_lsn: self.lsn - 1, count: 1, tokens, sum };
        self.agent.step(self.now, self.lsn - 1, earned);
        self.agent.step(self.now, self.lsn, Input::Block(Box::new(view(self.now))));
        self.prices.push(self.agent.serving().expect("goes on selling").mtok_completion_uusdc.0);
        self.sold.push(tokens);
    }

    /// Hours in which the price turned round.
    fn turns(&self) -> usize {
        let moves: Vec<bool> = self.prices.windows(2).filter(|w| w[0] != w[1]).map(|w| w[0] < w[1]).collect();
        moves.windows(2).filter(|w| w[0] != w[1]).count()
    }

    fn highest_pct(&self) -> u128 {
        self.prices.iter().max().expect("one") * 100 / self.floor()
    }

    fn income(&self, hours: std::ops::Range<usize>) -> u128 {
        hours.map(|hour| u128::from(self.sold[hour]) * self.prices[hour] / 1_000_000).sum()
    }

    fn never_below_the_floor(&self) {
        assert!(self.prices.iter().all(|price| *price >= self.floor()), "{:?}", self.prices);
    }
}

fn view(now: u64) -> View {
    let lease = |id: u64, provider: u8| LeaseView {
        id,
        offer: id,
        provider: [provider; 20],
        price_e6: 900_000 * 1_000_000 / 86_400,
        start: NOW,
        end: NOW + 300 * 86_400,
        ready_by: NOW,
        ready: true,
        escrow_left: Usdc(1_800_000),
    };
    View {
        number: now - NOW + 1,
        timestamp: now,
        stage: Stage::Alive,
        paused: false,
        restoring: false,
        epoch: 1,
        operator_is_me: true,
        active: Some(lease(1, 1)),
        standby: Some(lease(2, 2)),
        draining: None,
        announced: 0,
        announced_at: 0,
        checkpoint_seq: 1,
        last_heartbeat: now,
        challenged_at: 0,
        balance: Usdc(100_000_000),
        escrow: Usdc(3_600_000),
        purse: Usdc::ZERO,
        spent_in_day: Usdc::ZERO,
        operator_gas_wei: 1,
        relay_gas_wei: 1,
        treasury_gas_wei: 1,
        mandate_until: u64::MAX - 1,
        wind_down_at: 0,
        limits: Limits {
            day_limit: Usdc(20_000_000),
            price_e6_max: 100_000_000,
            term_max: 30 * 86_400,
            prepay_max: 2 * 86_400,
            gas_day_max_wei: 0,
            gas_target_wei: 0,
            starve_floor: Usdc(1_000_000),
        },
        offers: vec![],
    }
}

#[test]
fn steady_demand_finds_one_price_and_stays_there() {
    for (wanted_pct, lowest, highest) in [(35, 100, 100), (55, 100, 100), (90, 125, 150), (200, 280, 330)] {
        let mut shop = Shop::open();
        (0..14 * 24).for_each(|_| shop.hour(wanted_pct));
        shop.never_below_the_floor();
        assert_eq!(shop.turns(), 0, "{wanted_pct} %: {:?}", shop.prices);
        let last = shop.prices[shop.prices.len() - 1] * 100 / shop.floor();
        assert!((lowest..=highest).contains(&last), "{wanted_pct} %: ends at {last} % of the floor");
        // From 30 % sold, the floor pays the hosts and the margin.
        let day = shop.income(13 * 24..14 * 24);
        assert!(day >= COST_HOUR * 24 * 119 / 100, "{wanted_pct} %: {day} a day");
    }
}

#[test]
fn a_day_s_rhythm_is_followed_without_swinging() {
    // Nights at 15 %, evenings at 110 % of the capacity.
    const DAY: [u64; 24] =
        [15, 15, 15, 15, 15, 20, 30, 45, 60, 70, 75, 75, 70, 70, 75, 80, 85, 95, 105, 110, 100, 70, 45, 25];
    let mut shop = Shop::open();
    (0..14 * 24).for_each(|hour| shop.hour(DAY[hour % 24]));
    shop.never_below_the_floor();
    assert!(shop.turns() <= 2 * 14, "{} turns in 14 days", shop.turns());
    assert!(shop.highest_pct() <= 200, "{} % of the floor", shop.highest_pct());
    assert!(shop.income(24..14 * 24) >= COST_HOUR * 13 * 24, "a fortnight pays its hosts");
}

#[test]
fn a_burst_is_priced_and_forgotten() {
    let mut shop = Shop::open();
    let shape = |hour: u32| if (48..54).contains(&hour) { 400 } else { 35 };
    (0..96).for_each(|hour| shop.hour(shape(hour)));
    shop.never_below_the_floor();
    assert!((160..=200).contains(&shop.highest_pct()), "{} % of the floor", shop.highest_pct());
    assert_eq!(shop.turns(), 1);
    // Six steps up, and eight hours after the burst nothing is left of it.
    assert_eq!(shop.prices[62], shop.floor(), "{:?}", &shop.prices[48..64]);
}

#[test]
fn demand_that_fades_takes_the_price_to_the_floor_and_no_further() {
    let mut shop = Shop::open();
    // From twice the capacity, halving every ten days.
    (0..60 * 24u64).for_each(|hour| shop.hour((200 >> (hour / 240)).max(2)));
    shop.never_below_the_floor();
    assert_eq!(shop.prices[shop.prices.len() - 1], shop.floor());
    assert_eq!(shop.turns(), 1, "up to what the market bears, then down");
}

#[test]
fn a_flood_prices_nobody_out_for_long() {
    let mut shop = Shop::open();
    let shape = |hour: u32| if (24..72).contains(&hour) { 10_000 } else { 50 };
    (0..24 * 6).for_each(|hour| shop.hour(shape(hour)));
    shop.never_below_the_floor();
    // Four times the floor at most, which the flood pays, and half a day later the old customers are back.
    assert_eq!(shop.highest_pct(), 400);
    assert!(shop.income(24..72) >= COST_HOUR * 48 * 4);
    assert_eq!(shop.turns(), 1);
    let back = shop.prices[72..].iter().position(|price| price * 100 <= shop.floor() * 125);
    assert!(back.is_some_and(|hours| hours <= 14), "{back:?} hours until the price is what it was, but for a quarter");
}
