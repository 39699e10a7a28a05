use super::{Adapter, Further, Kind, Manifest, Supplier, booked_by};
use alloy::primitives::Address;
use pay::Usdc;

const WEIGHTS: &str = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi";

/// Every field that a manifest may have, in the order in which it is written.
pub(crate) fn whole() -> String {
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
hibernates = true
delay_days = 7
duty_pay_uusdc = "20000"
duty_day_max_uusdc = "100000"
relay_max_wei = "100000000000000"
purse_uusdc_max = "300000"
store_urls = ["http://127.0.0.1:7000"]
models_bytes_max = 4000000000

[ceilings]
day_limit_uusdc = "20000000"
price_e6_max = 46296296
lease_days = 30
prepay_days = 2
gas_target_wei = "100000000000000000"
gas_day_max_wei = "1000000000000000000"

[gas_market]
router = "0x2626664c2603336E57B271c5C0b26F421741e481"
weth = "0x4200000000000000000000000000000000000006"
oracle = "0x71041dddad3595F9CEd3DcCFBe3D1F4b0a16Bb70"
sequencer = "0xBCF85224fc0756B9Fa45aA7892530B47e10b6433"
pool_fee = 500
slippage_bps = 50
stale_after_secs = 3600

[archive]
gateways = ["http://127.0.0.1:1984"]
payee = "0x7777777777777777777777777777777777777777"
url = "http://127.0.0.1:7010"
uusdc_per_day_max = "400000"
every_days = 7

[archive.transactions]
{WEIGHTS} = "BNttzDav3jHVnNiV7nYbQv-GY0HQ-4XXsdkE5K9ylHQ"

[payments]
factories = ["0x3333333333333333333333333333333333333333"]
facilitator_url = "http://127.0.0.1:9"
final_above_uusdc = "20000"
final_blocks = 30

[per_call]
classify_uusdc = "1200"
extract_uusdc = "2500"
verify_uusdc = "3000"

[model]
name = "m"
cid = "{WEIGHTS}"
file = "m.gguf"
sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
bytes = 98362432
context = 8192

[[adapters]]
name = "poet"
cid = "{WEIGHTS}"
file = "poet.gguf"
sha256 = "0179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
bytes = 1000

[embedding]
name = "e"
cid = "{WEIGHTS}"
file = "e.gguf"
sha256 = "4672e27e4bacba1f619aa31f198f54a3733a51e6858d3d6d078f5c672bcdbd5a"
bytes = 25282080
context = 256

[[models]]
name = "big"
kind = "chat"
cid = "{WEIGHTS}"
file = "big.gguf"
sha256 = "1179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
bytes = 196724864
context = 4096

[[models]]
name = "v"
kind = "embedding"
cid = "{WEIGHTS}"
file = "v.gguf"
sha256 = "2179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
bytes = 1000
context = 512
price_pct = 150

[[suppliers]]
model = "theirs"
treasury = "0x6666666666666666666666666666666666666666"
supplier_model = "m"
max_uusdc_per_call = "30000"
max_uusdc_per_day = "1000000"

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
        refuses(from, to, why);
    }
}

fn refuses(from: &str, to: &str, why: &str) {
    let text = whole();
    assert!(text.contains(from), "{from}");
    let refused = Manifest::parse(&text.replace(from, to)).unwrap_err().to_string();
    assert!(refused.contains(why), "{refused}");
}

#[test]
fn an_archivist_is_named_whole_or_not_at_all() {
    let read = Manifest::parse(&whole()).unwrap().archive;
    assert_eq!(read.payee, Some(Address::repeat_byte(0x77)));
    assert_eq!(
        (read.url.as_deref(), read.uusdc_per_day_max, read.every_days),
        (Some("http://127.0.0.1:7010"), 400_000, 7)
    );
    let (payee, url) =
        ("payee = \"0x7777777777777777777777777777777777777777\"\n", "url = \"http://127.0.0.1:7010\"\n");
    let (day, days) = ("uusdc_per_day_max = \"400000\"\n", "every_days = 7\n");
    let plain = whole().replace(day, "").replace(days, "");
    let read = Manifest::parse(&plain).unwrap().archive;
    assert_eq!((read.uusdc_per_day_max, read.every_days), (500_000, 30), "what is not said");
    let without = plain.replace(payee, "").replace(url, "");
    assert_eq!(Manifest::parse(&without).unwrap().archive.payee, None);
    for (from, to, why) in [
        (payee, "", "nobody would be paid"),
        (payee, "payee = \"0x0000000000000000000000000000000000000000\"\n", "is nobody"),
        (url, "", "`archive.url` is missing"),
        (url, "url = \"https://archivist\"\n", "begins with http://"),
        (day, "uusdc_per_day_max = \"0\"\n", "must be above 0"),
        (day, "uusdc_per_day_max = \"10000001\"\n", "not above `day_limit_uusdc`"),
        (days, "every_days = 0\n", "between 1 and 366"),
        (days, "every_days = 367\n", "between 1 and 366"),
    ] {
        refuses(from, to, why);
    }
    let only_days = without.replace("[archive]\n", "[archive]\nevery_days = 7\n");
    assert!(Manifest::parse(&only_days).unwrap_err().to_string().contains("nobody would be paid"));
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
fn large_payments_wait_for_finality_and_small_ones_do_not_unless_it_is_said() {
    let risk = Manifest::parse(&whole()).unwrap().payments.risk();
    assert_eq!((risk.final_above, risk.final_blocks), (Usdc(20_000), 30));
    let silent = whole().replace("final_above_uusdc = \"20000\"\nfinal_blocks = 30\n", "");
    let read = Manifest::parse(&silent).unwrap();
    assert_eq!((read.payments.risk().final_above, read.payments.final_blocks), (Usdc(1_000_000), 10));
    // What is not said is not written: the digests of older manifests stay.
    assert!(!read.to_toml().unwrap().contains("final_"));
    for blocks in ["0", "61"] {
        let text = whole().replace("final_blocks = 30", &format!("final_blocks = {blocks}"));
        let refused = Manifest::parse(&text).unwrap_err().to_string();
        assert!(refused.contains("`payments.final_blocks`"), "{refused}");
    }
}

#[test]
fn limits_are_loosened_to_ceilings_that_lie_above_all_of_them_or_never() {
    let read = Manifest::parse(&whole()).unwrap();
    let ceilings = read.ceilings.as_ref().unwrap();
    assert_eq!((ceilings.day_limit_uusdc, ceilings.price_e6_max, ceilings.lease_days), (20_000_000, 46_296_296, 30));
    let (before, rest) = whole().split_once("[ceilings]").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let without = format!("{before}{}", &rest[rest.find("[gas_market]").unwrap()..]);
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
fn gas_is_bought_where_the_manifest_says_and_each_wrong_field_is_named() {
    let read = Manifest::parse(&whole()).unwrap();
    let market = read.gas_market.as_ref().unwrap();
    assert_eq!((market.pool_fee, market.slippage_bps, market.stale_after_secs), (500, 50, 3_600));
    let text = whole();
    let (from, to) = (text.find("[gas_market]").unwrap(), text.find("[archive]").unwrap());
    let without = format!("{}{}", &text[..from], &text[to..]);
    assert_eq!(Manifest::parse(&without).unwrap().gas_market, None);
    let silent = text
        .replace("slippage_bps = 50\n", "")
        .replace("sequencer = \"0xBCF85224fc0756B9Fa45aA7892530B47e10b6433\"\n", "");
    let market = Manifest::parse(&silent).unwrap().gas_market.unwrap();
    assert_eq!((market.slippage_bps, market.sequencer), (100, None));
    for (from, to, why) in [
        (
            "0x2626664c2603336E57B271c5C0b26F421741e481",
            "0x0000000000000000000000000000000000000000",
            "`gas_market.router` is",
        ),
        (
            "0x4200000000000000000000000000000000000006",
            "0x0000000000000000000000000000000000000000",
            "`gas_market.weth` is",
        ),
        (
            "0x71041dddad3595F9CEd3DcCFBe3D1F4b0a16Bb70",
            "0x0000000000000000000000000000000000000000",
            "`gas_market.oracle` is",
        ),
        ("pool_fee = 500", "pool_fee = 0", "`gas_market.pool_fee` = 0"),
        ("pool_fee = 500", "pool_fee = 1000000", "`gas_market.pool_fee` = 1000000"),
        ("pool_fee = 500\n", "", "missing field `pool_fee`"),
        ("slippage_bps = 50", "slippage_bps = 1001", "`gas_market.slippage_bps` = 1001"),
        ("stale_after_secs = 3600", "stale_after_secs = 0", "`gas_market.stale_after_secs` = 0"),
        ("stale_after_secs = 3600\n", "", "missing field `stale_after_secs`"),
        ("[gas_market]\n", "[gas_market]\nmax = \"1\"\n", "unknown field `max`"),
    ] {
        assert!(text.contains(from), "{from}");
        let refused = Manifest::parse(&text.replace(from, to)).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn what_is_sold_by_the_call_costs_what_a_call_may_cost() {
    let per_call = Manifest::parse(&whole()).unwrap().per_call;
    assert_eq!((per_call.classify_uusdc, per_call.extract_uusdc), (1_200, 2_500));
    for (from, to, why) in [
        ("\"1200\"", "\"999\"", "`per_call.classify_uusdc` = 999; like every call it costs `min_call_uusdc` = 1000"),
        ("\"2500\"", "\"50001\"", "`per_call.extract_uusdc` = 50001"),
        ("\"2500\"", "2500", "invalid type"),
    ] {
        let error = Manifest::parse(&whole().replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
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

#[test]
fn adapters_have_names_and_files_of_their_own() {
    let read = Manifest::parse(&whole()).unwrap();
    let own: Vec<_> = read.own_models().collect();
    assert_eq!(own, [("m".to_owned(), None), ("m:poet".to_owned(), Some(0))]);
    assert_eq!(Manifest::parse(&read.to_toml().unwrap()).unwrap(), read);
    for (from, to, why) in [
        ("name = \"poet\"", "name = \"a:b\"", "`adapters[0].name` must have"),
        ("name = \"poet\"", "name = \"\"", "`adapters[0].name` must have"),
        ("file = \"poet.gguf\"", "file = \"m.gguf\"", "must be no other's"),
        ("file = \"poet.gguf\"", "file = \"e.gguf\"", "must be no other's"),
        ("sha256 = \"0179", "sha256 = \"x179", "`adapters[0].sha256`"),
        ("name = \"e\"", "name = \"m:poet\"", "`embedding.name` = `m:poet` is sold here already"),
        ("model = \"theirs\"", "model = \"m:poet\"", "`suppliers[0].model` = `m:poet` is sold here already"),
    ] {
        let text = whole();
        assert!(text.contains(from), "{from}");
        let refused = Manifest::parse(&text.replace(from, to)).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    let bad = Manifest { adapters: vec![Adapter { cid: "no".into(), ..read.adapters[0].clone() }], ..read.clone() };
    assert!(Manifest::parse(&bad.to_toml().unwrap()).unwrap_err().to_string().contains("`adapters[0].cid`"));
    let many = (0..=16).map(|n| Adapter { name: format!("n{n}"), file: format!("f{n}"), ..read.adapters[0].clone() });
    let bad = Manifest { adapters: many.collect(), ..read };
    assert!(Manifest::parse(&bad.to_toml().unwrap()).unwrap_err().to_string().contains("the limit is 16"));
}

#[test]
fn further_models_have_names_files_and_prices_of_their_own() {
    let read = Manifest::parse(&whole()).unwrap();
    assert_eq!(Manifest::parse(&read.to_toml().unwrap()).unwrap(), read);
    assert_eq!((read.further("big", Kind::Chat), read.further("v", Kind::Embedding)), (Some(0), Some(1)));
    assert_eq!((read.further("v", Kind::Chat), read.further("m", Kind::Chat)), (None, None));
    let pct = |bytes, price_pct, kind| Further { bytes, price_pct, kind, ..read.models[0].clone() }.price_pct_up(&read);
    assert_eq!(read.models.iter().map(|model| model.price_pct_up(&read)).collect::<Vec<_>>(), [200, 150]);
    assert_eq!(pct(98_362_433, None, Kind::Chat), 101, "its bytes are to the model's as the prices of tokens are");
    assert_eq!((pct(1, None, Kind::Chat), pct(50_564_160, None, Kind::Embedding)), (1, 200));
    assert_eq!(pct(u64::MAX, None, Kind::Chat), u32::MAX);
    // What the book keeps names the model, and the route is read out of it again.
    let booked = read.booked("POST /v1/completions", Some(0));
    assert_eq!(booked_by(&booked), ("POST /v1/completions", Some(WEIGHTS)));
    assert_eq!(booked_by(&read.booked("POST /v1/completions", None)), ("POST /v1/completions", None));
    for (from, to, why) in [
        ("name = \"big\"", "name = \"a:b\"", "`models[0].name` must have"),
        ("name = \"big\"", "name = \"\"", "`models[0].name` must have"),
        ("name = \"big\"", "name = \"m\"", "must be no other's"),
        ("name = \"v\"", "name = \"e\"", "must be no other's"),
        ("file = \"big.gguf\"", "file = \"poet.gguf\"", "must be no other's"),
        ("file = \"v.gguf\"", "file = \"big.gguf\"", "must be no other's"),
        ("kind = \"chat\"", "kind = \"song\"", "unknown variant"),
        ("sha256 = \"1179", "sha256 = \"x179", "`models[0].sha256`"),
        ("price_pct = 150", "price_pct = 0", "`models[1].price_pct` must lie"),
        ("context = 512", "context = 0", "`models[1].context` = 0"),
        ("model = \"theirs\"", "model = \"v\"", "`suppliers[0].model` = `v` is sold here already"),
    ] {
        let text = whole();
        assert!(text.contains(from), "{from}");
        let refused = Manifest::parse(&text.replace(from, to)).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    let none = Manifest { models: Vec::new(), ..read.clone() };
    assert!(Manifest::parse(&none.to_toml().unwrap()).unwrap_err().to_string().contains("`models_bytes_max` is for"));
    let many = (0..=16).map(|n| Further { name: format!("n{n}"), file: format!("f{n}"), ..read.models[0].clone() });
    let bad = Manifest { models: many.collect(), ..read };
    assert!(Manifest::parse(&bad.to_toml().unwrap()).unwrap_err().to_string().contains("the limit is 16"));
}

#[test]
fn suppliers_are_fixed_at_birth_and_each_wrong_field_is_named() {
    let read = Manifest::parse(&whole()).unwrap();
    let [supplier] = &read.suppliers[..] else { panic!("one: {:?}", read.suppliers) };
    assert_eq!((supplier.model.as_str(), supplier.supplier_model.as_deref()), ("theirs", Some("m")));
    assert_eq!((read.dearest_supplier_uusdc(), supplier.price_uusdc_up(&read)), (30_000, 36_000), "20 % on top");
    let least = Manifest { margin_pct: 0, ..read.clone() };
    assert_eq!(supplier.price_uusdc_up(&least), 31_000, "the least price of a call on top");
    let odd = Supplier { max_uusdc_per_call: 30_001, ..supplier.clone() };
    assert_eq!(odd.price_uusdc_up(&read), 36_002, "rounded up");
    for (from, to, why) in [
        ("model = \"theirs\"", "model = \"m\"", "`suppliers[0].model` = `m` is sold here already"),
        ("model = \"theirs\"", "model = \"e\"", "`suppliers[0].model` = `e` is sold here already"),
        ("model = \"theirs\"", "model = \"\"", "`suppliers[0].model` must have"),
        ("supplier_model = \"m\"", "supplier_model = \"\"", "`suppliers[0].supplier_model` must have"),
        ("0x6666666666666666666666666666666666666666", "0x0000000000000000000000000000000000000000", "is nobody"),
        ("0x6666666666666666666666666666666666666666", "0x66", "invalid"),
        ("per_call = \"30000\"", "per_call = \"0\"", "`suppliers[0].max_uusdc_per_call` must be above 0"),
        ("per_day = \"1000000\"", "per_day = \"29999\"", "not above `suppliers[0].max_uusdc_per_day`"),
        ("per_call = \"30000\"", "per_call = \"3e4\"", "is not a decimal integer"),
        ("per_call = \"30000\"", "per_call = \"41667\"", "a call costs 50001, more than `max_call_uusdc`"),
        ("max_uusdc_per_day = \"1000000\"\n", "", "missing field `max_uusdc_per_day`"),
        ("max_uusdc_per_day", "url = \"http://evil\"\nmax_uusdc_per_day", "unknown field"),
        ("purse_uusdc_max = \"300000\"\n", "", "`purse_uusdc_max` = 0 is less than a call of 30000 costs"),
        ("purse_uusdc_max = \"300000\"", "purse_uusdc_max = \"29999\"", "`purse_uusdc_max` = 29999 is less"),
    ] {
        let text = whole();
        assert!(text.contains(from), "{from}");
        let refused = Manifest::parse(&text.replace(from, to)).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    let alone = Manifest { suppliers: Vec::new(), ..read.clone() }.to_toml().unwrap();
    let refused = Manifest::parse(&alone).unwrap_err().to_string();
    assert!(refused.contains("`purse_uusdc_max` is for `suppliers`"), "{refused}");
    let neither = Manifest { suppliers: Vec::new(), purse_uusdc_max: 0, ..read.clone() }.to_toml().unwrap();
    assert_eq!(Manifest::parse(&neither).unwrap().dearest_supplier_uusdc(), 0);
    let twice = Manifest { suppliers: vec![supplier.clone(), supplier.clone()], ..read }.to_toml().unwrap();
    let refused = Manifest::parse(&twice).unwrap_err().to_string();
    assert!(refused.contains("`suppliers[1].model` = `theirs` is sold here already"), "{refused}");
}
