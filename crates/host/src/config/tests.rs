use super::*;

const GOOD: &str = r#"
data_dir = "/tmp/p1"
listen = "127.0.0.1:0"
public_url = "http://127.0.0.1:7001"
rpc_urls = ["http://127.0.0.1:8545"]
chain_id = 31337
market = "0x00000000000000000000000000000000000000aa"
usdc = "0x00000000000000000000000000000000000000bb"
key_file = "/tmp/p1.key"
store_urls = ["http://127.0.0.1:7000"]
stake_uusdc = "25000000"
abuse_contact = "abuse@example.org"

[[offers]]
price_e6 = 1_000_000
capacity = 2
min_term = 60
max_term = 2_592_000
memory_mib = 1024
milli_cpu = 1000

[reprice]
every_secs = 600
spread_pct = 20
seed = 7
"#;

#[test]
fn a_whole_file_is_read() {
    let config = HostConfig::parse(GOOD).unwrap();
    assert_eq!(config.stake_uusdc, 25_000_000);
    assert_eq!(config.offers.len(), 1);
    assert!(config.threads >= 1, "all cores, unless it is said");
    assert_eq!(config.reprice.unwrap().spread_pct, 20);
}

#[test]
fn what_is_written_is_read_again() {
    let config = HostConfig::parse(GOOD).unwrap();
    let text = toml::to_string(&config).unwrap();
    assert_eq!(toml::to_string(&HostConfig::parse(&text).unwrap()).unwrap(), text);
}

#[test]
fn a_gift_of_gas_is_the_chains_unless_the_file_has_its_own_and_is_never_for_nothing() {
    let gift = |more: &str| HostConfig::parse(&format!("{GOOD}{more}")).map(|config| config.gift());
    assert_eq!(gift("").unwrap(), Gift { wei: 20_000_000_000_000_000, after_uusdc: 1 });
    let elsewhere = HostConfig::parse(&GOOD.replacen("31337", "8453", 1)).unwrap().gift();
    assert_eq!(elsewhere, Gift { wei: 20_000_000_000_000, after_uusdc: 50_000 });
    let own = "[gift]\nwei = \"30000000000000\"\nafter_uusdc = 75_000\n";
    assert_eq!(gift(own).unwrap(), Gift { wei: 30_000_000_000_000, after_uusdc: 75_000 });
    assert_eq!(gift("[gift]\nwei = 0\nafter_uusdc = 0\n").unwrap().wei, 0);
    for (file, word) in
        [("[gift]\nwei = 1\nafter_uusdc = 0\n", "gift.after_uusdc"), ("[gift]\nwei = 1\n", "after_uusdc")]
    {
        let refusal = gift(file).unwrap_err().message;
        assert!(refusal.contains(word), "{file}: {refusal}");
    }
}

#[test]
fn bad_files_are_refused_by_name() {
    for (from, to, word) in [
        ("abuse_contact", "abuse_kontact", "abuse_kontact"),
        ("milli_cpu", "millicpu", "millicpu"),
        ("\"25000000\"", "\"25 USDC\"", "25 USDC"),
        ("\"25000000\"", "\"+25\"", "+25"),
        ("[\"http://127.0.0.1:8545\"]", "[]", "rpc_urls"),
        ("[\"http://127.0.0.1:7000\"]", "[]", "store_urls"),
        ("spread_pct = 20", "spread_pct = 100", "spread_pct"),
        ("min_term = 60", "min_term = 2592001", "min_term"),
    ] {
        let error = HostConfig::parse(&GOOD.replacen(from, to, 1)).unwrap_err();
        assert!(error.message.contains(word), "{from} -> {to}: {}", error.message);
    }
}

#[test]
fn tenants_are_announced_at_the_public_host_and_what_is_none_is_refused_with_what_to_write() {
    let announced = |url: &str| {
        let text = GOOD.replacen("http://127.0.0.1:7001", url, 1);
        HostConfig::parse(&text).and_then(|config| config.tenant_url(20_001))
    };
    for (url, host) in [
        ("http://host.example:7100", "host.example"),
        ("http://host.example", "host.example"),
        ("http://192.0.2.7:7100", "192.0.2.7"),
        ("http://[2001:db8::7]:7100", "[2001:db8::7]"),
        ("http://[2001:db8::7]", "[2001:db8::7]"),
    ] {
        assert_eq!(announced(url).unwrap(), format!("http://{host}:20001"), "{url}");
    }
    for url in [
        "https://host.example:7100",
        "host.example:7100",
        "http://",
        "http://:7100",
        "http://host.example:",
        "http://host.example:71000",
        "http://host.example:7100/",
        "http://host.example/provider",
        "http://host.example?a=b",
        "http://me@host.example",
        "http://2001:db8::7:7100",
        "http://0.0.0.0:7100",
        "http://[::]:7100",
        "",
    ] {
        let refusal = announced(url).expect_err(url).message;
        assert!(refusal.contains(&format!("{url:?}")) && refusal.contains("write http://HOST:PORT"), "{refusal}");
    }
}
