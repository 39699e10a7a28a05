use super::*;
use alloy::sol_types::SolCall;
use node::manifest::Model;

fn manifest() -> Manifest {
    Manifest {
        name: "test".into(),
        code_cid: String::new(),
        beneficiary: Address::repeat_byte(1),
        threshold: 1,
        mandate_days: 365,
        lease_days: 3,
        prepay_days: 2,
        day_secs: 20,
        exposure_uusdc_max: 1,
        day_limit_uusdc: 10_000_000,
        price_e6_max: u64::MAX,
        starve_floor_uusdc: 1,
        gas_target_wei: 1,
        gas_day_max_wei: 50_000_000_000_000_000,
        margin_pct: 20,
        min_call_uusdc: 10_000,
        max_call_uusdc: 20_000,
        finality_blocks: 2,
        store_urls: Vec::new(),
        model: Model {
            name: "m".into(),
            cid: String::new(),
            file: "m".into(),
            sha256: String::new(),
            bytes: 1,
            context: 1,
        },
        stewards: Vec::new(),
    }
}

#[test]
fn a_month_is_thirty_of_the_worlds_days_on_two_hosts() {
    // 0.60 and 0.80 USDC a day of 20 s.
    let sum = sum_of(&manifest(), &[30_000_000_000, 40_000_000_000], Usdc(100_000_000));
    assert_eq!(sum.rent, Usdc(42_000_000));
    assert_eq!(sum.gas_wei_max, 1_500_000_000_000_000_000);
    assert_eq!(sum.break_even_calls_a_day, 140);
    assert_eq!(sum.seed_days, 71);
    let lines = sum.lines(Usdc(100_000_000));
    assert!(lines.contains("rent 42.000000 USDC") && lines.contains("gas at most 1.500 ETH"), "{lines}");
}

#[test]
fn refusals_are_grouped_by_reason_in_order_of_appearance() {
    let refusal = |entry, reason: &str| Refusal { entry, reason: reason.into() };
    let lines = refusal_lines(&[
        refusal("rent", "NotOperator"),
        refusal("activate", "NotCreator"),
        refusal("topUp", "NotOperator"),
    ]);
    assert_eq!(lines, "    NotOperator    rent topUp\n    NotCreator     activate");
}

#[test]
fn every_entry_that_somebody_may_call_is_tried() {
    use alloy::sol_types::SolInterface;
    // The whole ABI, less views and what is not an entry of a living treasury.
    let not_tried = [
        "initialize",
        "state",
        "birthOf",
        "recorded",
        "ORDER_TYPEHASH",
        "ACK_TYPEHASH",
        "domainSeparator",
        "eip712Domain",
        "isBarred",
        "gasSpentInDay",
        "isSteward",
        "FACTORY",
        "refuel",
    ];
    let tried: Vec<[u8; 4]> = entries(1, Address::ZERO, 0)
        .iter()
        .filter_map(|(_, data)| data.first_chunk::<4>().copied())
        .chain([
            chain::bindings::Treasury::pauseCall::SELECTOR,
            chain::bindings::Treasury::resumeCall::SELECTOR,
            chain::bindings::Treasury::stopCall::SELECTOR,
            chain::bindings::Treasury::evictCall::SELECTOR,
            chain::bindings::Treasury::rescueCall::SELECTOR,
            chain::bindings::Treasury::clearBarCall::SELECTOR,
            chain::bindings::Treasury::extendMandateCall::SELECTOR,
        ])
        .collect();
    for selector in chain::bindings::Treasury::TreasuryCalls::selectors() {
        let name = chain::bindings::Treasury::TreasuryCalls::name_by_selector(selector).unwrap_or("?");
        let name = name.trim_end_matches("Call");
        assert!(tried.contains(&selector) || not_tried.contains(&name), "{name} is never tried with the creator's key");
    }
}
