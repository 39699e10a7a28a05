use super::Manifest;

#[path = "../../../../tests/fuzz.rs"]
mod changes;

const WEIGHTS: &str = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi";

/// Every field that a manifest may have, in the order in which it is written.
fn whole() -> String {
    format!(
        r#"name = "one"
code_cid = "{WEIGHTS}"
beneficiary = "0x1111111111111111111111111111111111111111"
threshold = 2
safe = "0x2222222222222222222222222222222222222222"
mandate_days = 365
lease_days = 30
prepay_days = 2
day_secs = 86400
exposure_uusdc_max = "500000"
day_limit_uusdc = "10000000"
price_e6_max = 23148148
starve_floor_uusdc = "1000000"
gas_target_wei = "50000000000000000"
gas_day_max_wei = "500000000000000000"
margin_pct = 20
min_call_uusdc = "1000"
max_call_uusdc = "50000"
settlement_uusdc = "1400"
daemons_rescue = true
delay_days = 7
duty_pay_uusdc = "20000"
duty_day_max_uusdc = "100000"
relay_max_wei = "100000000000000"
store_urls = ["http://127.0.0.1:7000"]

[ceilings]
day_limit_uusdc = "20000000"
price_e6_max = 46296296
lease_days = 30
prepay_days = 2
gas_target_wei = "100000000000000000"
gas_day_max_wei = "1000000000000000000"

[archive]
gateways = ["http://127.0.0.1:1984"]

[archive.transactions]
{WEIGHTS} = "BNttzDav3jHVnNiV7nYbQv-GY0HQ-4XXsdkE5K9ylHQ"

[payments]
factories = ["0x3333333333333333333333333333333333333333"]
facilitator_url = "http://127.0.0.1:9"

[model]
name = "m"
cid = "{WEIGHTS}"
file = "m.gguf"
sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
bytes = 98362432
context = 8192

[embedding]
name = "e"
cid = "{WEIGHTS}"
file = "e.gguf"
sha256 = "4672e27e4bacba1f619aa31f198f54a3733a51e6858d3d6d078f5c672bcdbd5a"
bytes = 25282080
context = 256

[[stewards]]
address = "0x4444444444444444444444444444444444444444"
url = "http://127.0.0.1:1"
share_recipient = "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqs3290gq"

[[stewards]]
address = "0x5555555555555555555555555555555555555555"
url = "http://127.0.0.1:2"
share_recipient = "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqs3290gq"
"#
    )
}

#[test]
fn a_manifest_says_where_its_weights_are_archived() {
    let http = net::Client::new();
    let read = Manifest::parse(&whole()).unwrap();
    assert_eq!(Manifest::parse(&read.to_toml().unwrap()).unwrap(), read);
    let weights = store::cid::parse(WEIGHTS).unwrap();
    let (_, id) = read.archive.of(&http, &weights).unwrap();
    assert_eq!(id.to_string(), "BNttzDav3jHVnNiV7nYbQv-GY0HQ-4XXsdkE5K9ylHQ");
    assert!(read.archive.of(&http, &store::cid::of_raw(b"other")).is_none());

    for (from, to, why) in [
        ("[archive.transactions]\nbafy", "[archive.transactions]\nxbafy", "is not a CID"),
        ("= \"BNttz", "= \"Nttz", "archive.transactions"),
        ("gateways = [\"http://127.0.0.1:1984\"]", "gateways = []", "`archive.gateways` needs one"),
        ("[archive]\n", "[archive]\nkey = \"k\"\n", "unknown field"),
    ] {
        let text = whole();
        assert!(text.contains(from), "{from}");
        let refused = Manifest::parse(&text.replace(from, to)).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn what_stewards_are_paid_fits_a_day_and_is_nothing_unless_it_is_said() {
    let read = Manifest::parse(&whole()).unwrap();
    assert_eq!((read.duty_pay_uusdc, read.duty_day_max_uusdc), (20_000, 100_000));
    let silent: String = whole()
        .lines()
        .filter(|l| !["delay", "duty", "relay"].iter().any(|w| l.starts_with(w)))
        .fold(String::new(), |text, line| text + line + "\n");
    let read = Manifest::parse(&silent).unwrap();
    assert_eq!((read.delay_days, read.duty_pay_uusdc, read.relay_max_wei), (7, 0, 100_000_000_000_000));
    for (from, to, why) in [
        ("duty_pay_uusdc = \"20000\"", "duty_pay_uusdc = \"100001\"", "`duty_pay_uusdc` must not be above"),
        ("duty_day_max_uusdc = \"100000\"", "duty_day_max_uusdc = \"10000001\"", "nor that above `day_limit_uusdc`"),
        ("delay_days = 7", "delay_days = 366", "a year is the longest"),
        ("delay_days = 7", "finality_blocks = 2", "unknown field"),
    ] {
        let text = whole();
        assert!(text.contains(from), "{from}");
        let refused = Manifest::parse(&text.replace(from, to)).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn limits_are_loosened_to_ceilings_that_lie_above_all_of_them_or_never() {
    let read = Manifest::parse(&whole()).unwrap();
    let ceilings = read.ceilings.as_ref().unwrap();
    assert_eq!((ceilings.day_limit_uusdc, ceilings.price_e6_max, ceilings.lease_days), (20_000_000, 46_296_296, 30));
    let (before, rest) = whole().split_once("[ceilings]").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let without = format!("{before}{}", &rest[rest.find("[archive]").unwrap()..]);
    assert_eq!(Manifest::parse(&without).unwrap().ceilings, None);
    for (from, to, why) in [
        (
            "day_limit_uusdc = \"20000000\"",
            "day_limit_uusdc = \"9999999\"",
            "`ceilings.day_limit_uusdc` = 9999999 lies",
        ),
        ("price_e6_max = 46296296", "price_e6_max = 23148147", "`ceilings.price_e6_max` = 23148147 lies below"),
        (
            "lease_days = 30\nprepay_days = 2\ngas",
            "lease_days = 29\nprepay_days = 2\ngas",
            "`ceilings.lease_days` = 29",
        ),
        ("lease_days = 30\nprepay_days = 2\ngas", "lease_days = 31\nprepay_days = 2\ngas", "1 to 30 days"),
        ("prepay_days = 2\ngas", "prepay_days = 1\ngas", "`ceilings.prepay_days` = 1 lies below"),
        ("prepay_days = 2\ngas", "prepay_days = 3\ngas", "`ceilings.prepay_days` = 3; escrow"),
        ("gas_target_wei = \"1000", "gas_target_wei = \"1\" # 1000", "`ceilings.gas_target_wei` = 1 lies below"),
        ("gas_day_max_wei = \"1000", "gas_day_max_wei = \"2\" # 1000", "`ceilings.gas_day_max_wei` = 2 lies below"),
        ("price_e6_max = 46296296\n", "", "missing field `price_e6_max`"),
        ("[ceilings]\n", "[ceilings]\nstarve_floor_uusdc = \"1\"\n", "unknown field `starve_floor_uusdc`"),
        ("delay_days = 7", "delay_days = 0", "limits would never be loosened"),
    ] {
        let text = whole();
        assert!(text.contains(from), "{from}");
        let refused = Manifest::parse(&text.replace(from, to)).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn an_embedding_model_is_another_model() {
    let read = Manifest::parse(&whole()).unwrap();
    assert_eq!(read.embedding.as_ref().map(|model| model.context), Some(256));
    for (from, to, why) in [
        ("name = \"e\"", "name = \"m\"", "another name"),
        ("file = \"e.gguf\"", "file = \"m.gguf\"", "another file"),
        ("sha256 = \"4672", "sha256 = \"x672", "`embedding.sha256`"),
        ("[embedding]", "[embeddings]", "unknown field"),
    ] {
        let text = whole();
        assert!(text.contains(from), "{from}");
        let refused = Manifest::parse(&text.replace(from, to)).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
}

/// What TOML, amounts and lists look like where they hurt.
const TOKENS: [&str; 16] = [
    "0",
    "-1",
    "18446744073709551616",
    "1e400",
    "\"\"",
    "\"01\"",
    "[",
    "]\n",
    "[[stewards]]\n",
    "[model]\n",
    "'''",
    "= ",
    "\n",
    "inf",
    "1979-05-27T07:32:00Z",
    "{a={a={a=",
];

/// A manifest is a stranger's text, and everybody must read the same thing in it: no panic, and what is taken is within
/// its bounds and is written and read again as itself.
#[test]
fn strangers_manifests_break_no_reader() {
    let seed_text = whole().into_bytes();
    let runs = changes::runs(4_000, 10_000_000);
    let mut taken = 0;
    for seed in 0..runs {
        let mut chance = changes::Chance(seed);
        let mut bytes = seed_text.clone();
        if seed % 8 != 0 {
            changes::mutate(&mut bytes, &mut chance, &TOKENS, 40);
        }
        let Ok(manifest) = std::str::from_utf8(&bytes).map_err(drop).and_then(|t| Manifest::parse(t).map_err(drop))
        else {
            continue;
        };
        taken += 1;
        let written = manifest.to_toml().unwrap();
        assert_eq!(Manifest::parse(&written).unwrap(), manifest, "seed {seed}");
        assert!((1..=30).contains(&manifest.lease_days) && (1..=2).contains(&manifest.prepay_days), "seed {seed}");
        let stewards = manifest.stewards.len();
        assert!(
            usize::from(manifest.threshold) <= stewards && (stewards == 1 || manifest.threshold >= 2),
            "seed {seed}"
        );
        assert!(manifest.min_call_uusdc > 0 && !manifest.store_urls.is_empty(), "seed {seed}");
        let above = |c: super::Ceilings| c.day_limit_uusdc >= manifest.day_limit_uusdc && c.lease_days <= 30;
        assert!(manifest.ceilings.clone().is_none_or(above), "seed {seed}");
    }
    assert!(taken >= runs / 16 && taken < runs / 2, "{taken} of {runs} were taken: the seeds are no good");
}
