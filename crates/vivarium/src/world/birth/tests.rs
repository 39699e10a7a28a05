use super::*;
use alloy::primitives::U128;
use alloy::signers::local::PrivateKeySigner;
use chain::Chain;
use chain::anvil::{Anvil, AnvilOptions};
use chain::bindings::Offer;
use chain::deploy::{MarketParams, deploy, fund_eth};
use node::manifest::{Ceilings, Model, Steward};
use steward::orders::{Action, Limits, OrderFile, Submitted};

#[path = "../../../../../tests/safe.rs"]
mod published;

const ETHER: u128 = 1_000_000_000_000_000_000;
/// Keys by number.
const CREATOR: u8 = 1;
const STEWARDS: [u8; 3] = [2, 3, 4];
const PROVIDER: u8 = 5;
const ANYBODY: u8 = 6;

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
        hibernates: false,
        delay_days: 7,
        duty_pay_uusdc: 20_000,
        duty_day_max_uusdc: 100_000,
        relay_max_wei: 1_000,
        purse_uusdc_max: 0,
        store_urls: Vec::new(),
        models_bytes_max: None,
        ceilings: None,
        gas_market: None,
        archive: node::manifest::Archive::default(),
        payments: node::manifest::Payments::default(),
        per_call: node::manifest::PerCall::default(),
        model: Model {
            name: "m".into(),
            cid: String::new(),
            file: "m".into(),
            sha256: String::new(),
            bytes: 1,
            context: 1,
        },
        adapters: Vec::new(),
        embedding: None,
        models: Vec::new(),
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
    let paid = "after 7 days, looser limits never; 0.020000 USDC to a steward for each checkpoint, at most 0.100000 USDC a day";
    assert!(said.ends_with(paid), "{said}");
    let none = stewards_terms(&Manifest { delay_days: 0, duty_pay_uusdc: 0, duty_day_max_uusdc: 0, ..manifest() });
    assert!(none.ends_with("new stewards: never; stewards are not paid"), "{none}");
    let ceilings = Some(Ceilings {
        day_limit_uusdc: 20_000_000,
        price_e6_max: 30_000_000_000,
        lease_days: 5,
        prepay_days: 2,
        gas_target_wei: 1,
        gas_day_max_wei: 60_000_000_000_000_000,
    });
    let higher = stewards_terms(&Manifest { ceilings, ..manifest() });
    let most = "new code, new stewards and looser limits after 7 days; limits up to 20.000000 USDC a day, 0.600000 USDC a \
                day for a host, 5 days of lease, 2 prepaid, gas of 0.060000000000000000 ETH a day and \
                0.000000000000000001 a key; 0.020000";
    assert!(higher.contains(most), "{higher}");
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

fn key(n: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(n)).unwrap()
}

/// An empty development chain, its contracts and a creator with money.
async fn development() -> (Anvil, Addresses, Wallet) {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let bin = project.join("contracts/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil");
    let bin = std::env::var_os("VIVARIUM_ANVIL").map_or(bin, PathBuf::from);
    let anvil = Anvil::spawn(&AnvilOptions { block_time: None, ..AnvilOptions::new(bin) }).await.unwrap();
    let chain = anvil.chain();
    for n in [CREATOR, PROVIDER, ANYBODY] {
        fund_eth(&chain, key(n).address(), 10 * ETHER).await.unwrap();
    }
    let market = MarketParams { stake_min: 1, ready_within: 45, grace: 34, drop_after: 40 };
    let addresses = deploy(&chain, &key(CREATOR), market).await.unwrap();
    let creator = Wallet::new(chain, key(CREATOR));
    (anvil, addresses, creator)
}

/// 2 of 3 stewards; `change` makes the manifest another one.
fn plan(creator: &Wallet, addresses: Addresses, change: impl FnOnce(&mut Manifest)) -> Plan {
    let mut stewards: Vec<Steward> = STEWARDS
        .map(|n| Steward {
            address: key(n).address(),
            url: "http://127.0.0.1:1".into(),
            share_recipient: String::new(),
        })
        .into();
    stewards.sort_by_key(|steward| steward.address);
    let mut manifest = Manifest { threshold: 2, stewards, ..manifest() };
    change(&mut manifest);
    Plan {
        manifest,
        manifest_digest: B256::repeat_byte(1),
        code_digest: B256::repeat_byte(2),
        creator: creator.clone(),
        addresses,
        seed: Usdc(5_000_000),
    }
}

/// Mints the seed, and has a provider offer a host.
async fn offered(plan: &Plan) -> Wallet {
    let market = plan.addresses.market;
    let provider = Wallet::new(plan.creator.chain.clone(), key(PROVIDER));
    let offer = Offer {
        provider: Address::ZERO,
        priceE6: 1_000_000,
        capacity: 1,
        used: 0,
        minTerm: 30,
        maxTerm: 900,
        memoryMiB: 512,
        milliCpu: 1_000,
        usePolicy: B256::ZERO,
        endpoint: "http://127.0.0.1:1".into(),
        abuseContact: "abuse@example.org".into(),
    };
    for (to, data) in [
        (plan.addresses.usdc, chain::usdc::calls::mint(plan.creator.address(), plan.seed.micro())),
        (plan.addresses.usdc, chain::usdc::calls::mint(provider.address(), 1)),
        (plan.addresses.usdc, chain::usdc::calls::approve(market, 1)),
        (market, chain::market::calls::register(1)),
        (market, chain::market::calls::post_offer(&offer)),
    ] {
        provider.send(Tx::call(to, data, "a provider's beginning")).await.unwrap();
    }
    provider
}

async fn is_rented(plan: &Plan) {
    while plan.creator.chain.market(plan.addresses.market).lease_count().await.unwrap() == 0 {
        sleep(Duration::from_millis(20)).await;
    }
}

/// The whole birth, with a provider that says at once that its host is ready.
async fn born(plan: &Plan) -> Address {
    let provider = offered(plan).await;
    let host = async {
        is_rented(plan).await;
        let ready = chain::market::calls::ready(1, key(7).address(), "http://127.0.0.1:2", B256::ZERO);
        provider.send(Tx::call(plan.addresses.market, ready, "ready")).await.unwrap();
        std::future::pending().await
    };
    // A birth that fails ends the wait for its lease.
    tokio::select! {
        born = run(plan, Consent::Given, Progress::Silent, std::future::pending()) => born.unwrap().treasury,
        never = host => never,
    }
}

/// Signed by two of the stewards' keys, submitted by anybody.
async fn ordered(chain: &Chain, treasury: Address, action: Action) -> Result<Submitted> {
    let mut order = OrderFile::prepare(chain, treasury, action, 3_600).await?;
    for n in &STEWARDS[..2] {
        order.sign(&key(*n))?;
    }
    order.submit(chain, &key(ANYBODY)).await
}

/// Mines a block of this time.
async fn at(chain: &Chain, timestamp: u64) {
    let _: serde_json::Value = chain.request("evm_setNextBlockTimestamp", (timestamp,)).await.unwrap();
    let _: serde_json::Value = chain.request("anvil_mine", (U256::from(1),)).await.unwrap();
}

/// Whoever interrupts a birth, or whose host does not get ready, reads where the money is and when it comes back, and then
/// it does.
#[tokio::test(flavor = "multi_thread")]
async fn a_birth_that_ends_half_way_gives_everything_back() {
    let (anvil, addresses, creator) = development().await;
    let chain = &creator.chain;
    let plan = plan(&creator, addresses, |_| ());
    offered(&plan).await;
    let failed = run(&plan, Consent::Given, Progress::Silent, is_rented(&plan)).await.unwrap_err();
    let said = format!("{failed:#}");
    let treasury: Address = said.split_whitespace().find_map(|word| word.trim_end_matches(';').parse().ok()).unwrap();
    assert!(said.contains(&format!("`vivarium birth --abort {treasury}`")), "{said}");
    assert!(said.ends_with("interrupted"), "{said}");
    let state = chain.treasury(treasury).state().await.unwrap();
    assert_eq!(state.balance + state.escrow, U256::from(plan.seed.micro()), "the seed is there");

    let anybody = Wallet::new(chain.clone(), key(ANYBODY));
    let early = abort::abort(&anybody, treasury).await.unwrap_err().to_string();
    let from = early.split_once("from chain time ").unwrap().1.split_once(' ').unwrap().0;
    assert!(early.starts_with("it is too early") && said.contains(&format!("from chain time {from} on")), "{early}");
    // The birth's words and the contract's clock agree to the second.
    let from: u64 = from.parse().unwrap();
    at(chain, from - 1).await;
    let early = abort::abort(&anybody, treasury).await.unwrap_err().to_string();
    assert!(early.ends_with(&format!("it is {}, 1 s before that", from - 1)), "{early}");
    at(chain, from).await;
    let usdc = chain.usdc(addresses.usdc);
    let before = chain.eth_balance(creator.address(), BlockId::latest()).await.unwrap();
    let back = abort::abort(&anybody, treasury).await.unwrap();
    let gas = U256::from(plan.manifest.gas_day_max_wei * GAS_DAYS);
    assert_eq!((back.creator, back.amount, back.wei), (creator.address(), plan.seed, gas));
    assert_eq!(usdc.balance(creator.address()).await.unwrap(), U256::from(plan.seed.micro()));
    assert_eq!(chain.eth_balance(creator.address(), BlockId::latest()).await.unwrap() - before, gas);
    let again = abort::abort(&anybody, treasury).await.unwrap_err().to_string();
    assert!(again.contains("is closed"), "{again}");
    anvil.stop().await.unwrap();
}

/// What a manifest says of stewards' pay, relayers' gas and delays is what the treasury then does.
#[tokio::test(flavor = "multi_thread")]
async fn a_birth_fixes_the_stewards_pay_the_delay_and_what_relayers_get_back() {
    let (anvil, addresses, creator) = development().await;
    let chain = &creator.chain;
    let plan = plan(&creator, addresses, |_| ());
    preflight(&plan).await.unwrap();
    let birth = terms(&plan).await.unwrap();
    let treasury = predict(chain, &addresses, &birth).await.unwrap();
    plan.creator.send(Tx::call(addresses.factory, calls::create(&birth), "create")).await.unwrap();
    let options = chain.treasury(treasury).birth().await.unwrap().options;
    assert_eq!((options.delay, options.relayMax), (7 * 20, 1_000));
    assert_eq!((options.dutyPay, options.dutyDayMax), (20_000, 100_000));
    assert_eq!((options.rescueThreshold, options.rescuers.len()), (2, 3));
    assert_eq!(options.ceilings, Policy::default());
    chain.verify_agent(treasury).await.unwrap();
    anvil.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stewards_loosen_to_the_manifests_ceilings_after_the_delay_and_no_further() {
    let (anvil, addresses, creator) = development().await;
    let chain = &creator.chain;
    let plan = plan(&creator, addresses, |manifest| {
        manifest.price_e6_max = 2_000_000;
        manifest.ceilings = Some(Ceilings {
            day_limit_uusdc: 20_000_000,
            price_e6_max: 3_000_000,
            lease_days: 5,
            prepay_days: 2,
            gas_target_wei: 2,
            gas_day_max_wei: 60_000_000_000_000_000,
        });
    });
    let treasury = born(&plan).await;
    let refused = abort::abort(&Wallet::new(chain.clone(), key(ANYBODY)), treasury).await.unwrap_err().to_string();
    assert!(refused.contains("was born"), "{refused}");
    let client = chain.treasury(treasury);
    let limits = || async { Limits::from(&client.birth().await.unwrap().policy) };
    let before = limits().await;
    assert_eq!((before.day_limit, before.term_max), (U128::from(10_000_000), 60));

    // All of them to their ceilings; each a little above its own is refused: none is mistaken for another.
    let most = Limits {
        day_limit: U128::from(20_000_000),
        price_e6_max: 3_000_000,
        term_max: 100,
        prepay_max: 40,
        gas_day_max: U128::from(60_000_000_000_000_000_u64),
        gas_target: U128::from(2),
        starve_floor: before.starve_floor,
    };
    for above in [
        Limits { day_limit: most.day_limit + U128::from(1), ..most },
        Limits { price_e6_max: most.price_e6_max + 1, ..most },
        Limits { term_max: most.term_max + 1, ..most },
        Limits { prepay_max: most.prepay_max + 1, ..most },
        Limits { gas_day_max: most.gas_day_max + U128::from(1), ..most },
        Limits { gas_target: most.gas_target + U128::from(1), ..most },
    ] {
        let refused = ordered(chain, treasury, Action::Loosen { limits: above }).await.unwrap_err();
        assert!(format!("{refused:#}").contains("BadPolicy"), "{refused:#}");
    }
    let loosen = || ordered(chain, treasury, Action::Loosen { limits: most });
    assert!(!loosen().await.unwrap().in_force, "queued");
    let early = format!("{:#}", loosen().await.unwrap_err());
    assert!(early.contains("TooEarly") && limits().await == before, "{early}");
    let _: serde_json::Value = chain.request("evm_increaseTime", (7 * 20,)).await.unwrap();
    let _: serde_json::Value = chain.request("anvil_mine", (U256::from(1),)).await.unwrap();
    assert!(loosen().await.unwrap().in_force);
    assert_eq!(limits().await, most);
    anvil.stop().await.unwrap();
}

/// By the program's own way: what it checks before, what it names as stewards, and that the Safe's owners then command.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_born_whose_quorum_is_a_safe() {
    let (anvil, addresses, creator) = development().await;
    let chain = &creator.chain;
    let mut owners = STEWARDS.map(|n| key(n).address()).to_vec();
    owners.sort();
    let safe = published::make(chain, &key(ANYBODY), owners.clone(), 2).await;
    let the_creators = [vec![creator.address()], owners[..2].to_vec()].concat();
    let the_creators = published::make(chain, &key(ANYBODY), the_creators, 2).await;
    let with = |change: &dyn Fn(&mut Manifest)| {
        plan(&creator, addresses, |manifest| {
            manifest.safe = Some(safe);
            change(manifest);
        })
    };
    let gone = |manifest: &mut Manifest| manifest.safe = Some(key(9).address());
    let fewer = |manifest: &mut Manifest| drop(manifest.stewards.pop());
    let more_of_them = |manifest: &mut Manifest| manifest.threshold = 3;
    let creator_inside = |manifest: &mut Manifest| {
        manifest.safe = Some(the_creators);
        manifest.stewards.retain(|steward| owners[..2].contains(&steward.address));
        manifest.stewards.push(Steward { address: creator.address(), ..manifest.stewards[0].clone() });
        manifest.stewards.sort_by_key(|steward| steward.address);
    };
    type Change<'a> = &'a dyn Fn(&mut Manifest);
    let wrong: [(Change<'_>, &str); 4] = [
        (&gone, "is no contract"),
        (&fewer, "wants 2 of its 3 owners"),
        (&more_of_them, "wants 2 of its 3 owners"),
        (&creator_inside, "the creator owns the Safe"),
    ];
    for (change, why) in wrong {
        let refused = run(&with(change), Consent::Given, Progress::Silent, std::future::pending()).await.unwrap_err();
        assert!(format!("{refused:#}").contains(why), "{refused:#}");
    }

    let treasury = born(&with(&|_| ())).await;
    let client = chain.treasury(treasury);
    let birth = client.birth().await.unwrap();
    assert_eq!((birth.stewards, birth.threshold), (vec![safe], 1));
    // Daemons have no Safe of their own: for a rescue their keys stand beside it.
    assert_eq!((birth.options.rescuers, birth.options.rescueThreshold), (owners, 2));
    let mut alone = OrderFile::prepare(chain, treasury, Action::Pause, 3_600).await.unwrap();
    alone.sign(&key(STEWARDS[0])).unwrap();
    let refused = alone.submit(chain, &key(ANYBODY)).await.unwrap_err().to_string();
    assert!(refused.contains("1 of the 3 owners of the Safe"), "{refused}");
    assert!(ordered(chain, treasury, Action::Pause).await.unwrap().in_force);
    assert!(client.state().await.unwrap().paused);
    // This manifest has no ceilings: not even what is allowed already can be ordered so.
    let limits = Limits::from(&birth.policy);
    let refused = ordered(chain, treasury, Action::Loosen { limits }).await.unwrap_err();
    assert!(format!("{refused:#}").contains("BadPolicy"), "{refused:#}");
    anvil.stop().await.unwrap();
}
