use super::*;
use node::manifest::Model;

fn manifest() -> Manifest {
    Manifest {
        name: "test".into(),
        code_cid: String::new(),
        beneficiary: Address::repeat_byte(1),
        threshold: 1,
        safe: None,
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
        settlement_uusdc: 1_400,
        daemons_rescue: true,
        delay_days: 7,
        duty_pay_uusdc: 20_000,
        duty_day_max_uusdc: 100_000,
        relay_max_wei: 1_000,
        purse_uusdc_max: 0,
        store_urls: Vec::new(),
        archive: node::manifest::Archive::default(),
        payments: node::manifest::Payments::default(),
        model: Model {
            name: "m".into(),
            cid: String::new(),
            file: "m".into(),
            sha256: String::new(),
            bytes: 1,
            context: 1,
        },
        embedding: None,
        suppliers: Vec::new(),
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
fn whoever_pays_reads_what_stewards_get_and_can_change() {
    let said = stewards_terms(&manifest());
    let paid = "after 7 days; 0.020000 USDC to a steward for each checkpoint, at most 0.100000 USDC a day";
    assert!(said.ends_with(paid), "{said}");
    let none = stewards_terms(&Manifest { delay_days: 0, duty_pay_uusdc: 0, duty_day_max_uusdc: 0, ..manifest() });
    assert!(none.ends_with("new stewards: never; stewards are not paid"), "{none}");
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
    use chain::bindings::Treasury::TreasuryCalls;
    let artifact: serde_json::Value =
        serde_json::from_str(include_str!("../../../../../contracts/abi/Treasury.json")).unwrap();
    let changes_something = |f: &&serde_json::Value| f["type"] == "function" && f["stateMutability"] != "view";
    let all = artifact["abi"].as_array().unwrap().iter().filter(changes_something).map(|f| f["name"].as_str().unwrap());
    // The factory's alone; gas for the operator and the relay, or the chain's own record for the registry, whoever asks;
    // a question in the form of a call; what the registry asks.
    let not_tried = ["initialize", "refuel", "identify", "windDownReason", "onERC721Received"];
    let tried: Vec<String> = entries(1, Address::ZERO, 0)
        .iter()
        .filter_map(|(_, data)| TreasuryCalls::name_by_selector(*data.first_chunk::<4>()?))
        .map(|name| name.trim_end_matches("Call").to_owned())
        .chain(ORDERS.map(str::to_owned))
        .collect();
    let mut seen = 0;
    for name in all {
        seen += 1;
        let listed = tried.iter().any(|t| t == name) || not_tried.contains(&name);
        assert!(listed, "{name} is never tried with the creator's key");
    }
    assert!(seen > 30, "the ABI names {seen} entries");
}

/// What a manifest says of stewards' pay, relayers' gas and delays is what the treasury then does.
#[tokio::test(flavor = "multi_thread")]
async fn a_birth_fixes_the_stewards_pay_the_delay_and_what_relayers_get_back() {
    use alloy::signers::local::PrivateKeySigner;
    use chain::anvil::{Anvil, AnvilOptions};
    use chain::deploy::{MarketParams, deploy, fund_eth};
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let bin = project.join("contracts/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil");
    let bin = std::env::var_os("VIVARIUM_ANVIL").map_or(bin, PathBuf::from);
    let anvil = Anvil::spawn(&AnvilOptions { block_time: None, ..AnvilOptions::new(bin) }).await.unwrap();
    let chain = anvil.chain();
    let key = |n| PrivateKeySigner::from_bytes(&B256::repeat_byte(n)).unwrap();
    fund_eth(&chain, key(1).address(), 1_000_000_000_000_000_000).await.unwrap();
    let market = MarketParams { stake_min: 1, ready_within: 45, grace: 34, drop_after: 40 };
    let addresses = deploy(&chain, &key(1), market).await.unwrap();
    let mut stewards: Vec<node::manifest::Steward> = [2, 3]
        .map(|n| node::manifest::Steward {
            address: key(n).address(),
            url: "http://127.0.0.1:1".into(),
            share_recipient: String::new(),
        })
        .into();
    stewards.sort_by_key(|steward| steward.address);
    let plan = Plan {
        manifest: Manifest { threshold: 2, stewards, ..manifest() },
        manifest_digest: B256::repeat_byte(1),
        code_digest: B256::repeat_byte(2),
        creator: Wallet::new(chain.clone(), key(1)),
        addresses,
        seed: Usdc(1),
    };
    preflight(&plan).await.unwrap();
    let birth = terms(&plan).await.unwrap();
    let treasury = predict(&chain, &addresses, &birth).await.unwrap();
    plan.creator.send(Tx::call(addresses.factory, calls::create(&birth), "create")).await.unwrap();
    let options = chain.treasury(treasury).birth().await.unwrap().options;
    assert_eq!((options.delay, options.relayMax), (7 * 20, 1_000));
    assert_eq!((options.dutyPay, options.dutyDayMax), (20_000, 100_000));
    assert_eq!((options.rescueThreshold, options.rescuers.len()), (2, 2));
    chain.verify_agent(treasury).await.unwrap();
    anvil.stop().await.unwrap();
}
