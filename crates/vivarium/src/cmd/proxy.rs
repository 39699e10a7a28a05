//! `vivarium proxy`: an OpenAI base URL on this machine that pays.

mod withdraw;

use super::link::{Named, Place, Scheme, Shop, block_on, by_identity, stopped};
use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result, anyhow, ensure};
use axum::http::HeaderValue;
use economy::Usdc;
use node::export::ListRequest;
use pay::buyer::{Buyer, BuyerPolicy, ChannelPolicy, Clock, Kind, SpendLimits};
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use vivarium::proxy::{self, Agent, Config, WhenUnknown, Whereabouts};
use vivarium::world::crowd::{ChainClock, channels, policy};
use vivarium::world::files::{Folder, read_key};
use vivarium::world::identity::AgentId;
use vivarium::world::record::Record;

/// To an answer's head. An answer that is not streamed comes with its head, so this is how long one may be in the
/// making before the same payment asks for it again. A guess, unmeasured.
const HEAD_DEADLINE: Duration = Duration::from_secs(60);
/// How long a payment whose answer does not come is sent again. One deadline that has passed is enough.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the only agent may take to name its price: a host that starts its engine takes seconds.
const QUOTE_WITHIN: Duration = Duration::from_secs(30);
/// The same where another agent can be asked: just longer than an agent waits for its own first price in the middle of a
/// move. Nothing is paid until then.
const QUOTE_WITHIN_OF_MANY: Duration = Duration::from_secs(9);

/// Channels with each agent: calls at the same time that do not wait for each other. A guess.
const SLOTS: u8 = 4;
/// A deposit is for this many calls like the one at hand, as far as the budget allows.
const DEPOSIT_CALLS: u32 = 20;
/// Channels of this command; the official clients and `vivarium ask` have others with the same key.
const LANE: u8 = 2;
/// A route that is sold by everything that an agent offers.
const PAID_ROUTE: &str = "/v1/chat/completions";

/// Serves the OpenAI API on this machine and pays the agent for each call by x402, within a budget.
///
/// Ordinary SDKs work through it: set their base URL to the one printed, and any API key (it is never forwarded).
/// The agent's address is taken from the chain and followed when it moves; only its treasury is paid.
///
/// Calls are paid from channels where the agent offers them: up to four calls at once with each agent, opened and topped
/// up by use. At most the budget lies in all of them together; it is not spent, the next proxy goes on from it, and
/// --refund has it given back. A fifth call at once, and one that needs a greater deposit, is paid by the cheapest of what
/// has a transaction of its own: exact, or upto by Permit2.
///
/// A day of the budget is a day of real time, midnight to midnight UTC. What was signed counts, taken or not, and is
/// kept in the world's folder, so that neither a restart nor a crash opens the budget again.
#[derive(clap::Args)]
#[command(after_help = "Example: vivarium proxy --budget 1/day\n  then, for an SDK: \
                        OPENAI_BASE_URL=http://127.0.0.1:4021/v1 OPENAI_API_KEY=unused")]
pub struct Flags {
    /// The most that may be spent in a day of real time (UTC), in USDC, like 1/day or 0.25/day
    #[arg(long, value_name = "USDC/day", value_parser = parse_budget, required_unless_present_any = ["refund", "withdraw"])]
    budget: Option<Usdc>,
    /// The most that one call may cost, in USDC. Agents price the longest answer that a call allows: set `max_tokens`
    #[arg(long, value_name = "USDC", value_parser = Usdc::parse, default_value = "1")]
    max_usdc: Usdc,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    named: Named,
    /// Another agent for when the first cannot be reached: its ERC-8004 identity or its treasury on the same chain, or
    /// another world's folder. May be repeated
    #[arg(long, value_name = "IDENTITY|TREASURY|DIR")]
    also: Vec<String>,
    /// When an agent was paid and does not answer, and neither it nor the chain says whether it took the payment: `wait`
    /// fails the call, and the same call again is the same payment; `pay-another` pays the next agent, too
    #[arg(long, value_name = "WHAT", default_value = "wait")]
    when_unknown: Unknown,
    /// What to pay by [default: from channels where the agent offers them, else what costs the least]. With
    /// batch-settlement alone a call waits for a free channel
    #[arg(long, value_name = "SCHEME")]
    scheme: Option<Scheme>,
    /// Serves nothing: has the agents give back what lies in this command's channels and is not spent, and says how much
    #[arg(long, conflicts_with = "scheme")]
    refund: bool,
    /// Serves nothing and asks no agent: takes out of this command's channels what is in them, which needs ether of the
    /// payer's. At once, by one transaction a channel, where the agent's treasury refunds whoever asks (it is winding down
    /// and its time for claims is over, or stewards opened refunds). Else by two: run once it begins; run again after the
    /// channel's delay it ends. For when the agent is gone: one that lives claims what it is owed before
    #[arg(long, conflicts_with_all = ["scheme", "refund"])]
    withdraw: bool,
    /// Who pays [default: the world's customer]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Where to listen; port 0 chooses a free one. Whoever reaches it spends the budget
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:4021")]
    listen: SocketAddr,
    /// One JSON object when it listens: {"base_url", "budget_uusdc", "payer"}; with --withdraw at its end: {"payer", "now",
    /// "channels": [{"channel", "receiver", "step": refunded, begun, waits or done, "amount_uusdc", "ready_at", "refunds_at",
    /// "transaction"}]}
    #[arg(long)]
    json: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Unknown {
    Wait,
    PayAnother,
}

/// `0.25/day`.
fn parse_budget(text: &str) -> Result<Usdc, String> {
    let amount = text.strip_suffix("/day").ok_or("a budget is USDC a day, like 1/day or 0.25/day")?;
    let budget = Usdc::parse(amount).map_err(|e| format!("{e}; a budget is USDC a day, like 1/day or 0.25/day"))?;
    if budget.is_zero() { Err("a budget of 0 buys nothing; name more, like 0.25/day".to_owned()) } else { Ok(budget) }
}

pub fn run(flags: Flags) -> Result<()> {
    ensure!(!flags.max_usdc.is_zero(), "--max-usdc 0: no call costs nothing");
    block_on(serve(flags))
}

async fn serve(flags: Flags) -> Result<()> {
    let until = stopped()?;
    let shop = flags.named.shop(&flags.place).await?;
    let key = read_key(shop.key_file(flags.key.as_ref())?)?;
    let payer = key.address();
    // Without one nothing is bought, and nothing put in.
    let budget = flags.budget.unwrap_or_default();
    let agents = agents(&flags, budget, &shop, key.clone()).await?;
    let chain_id = shop.record.chain.chain_id();
    if flags.refund {
        return refund(&agents).await;
    }
    if flags.withdraw {
        return withdraw::withdraw(&agents, &key, flags.json).await;
    }
    let listener =
        TcpListener::bind(flags.listen).await.with_context(|| format!("cannot listen on {}", flags.listen))?;
    let bound = listener.local_addr().context("cannot tell the port")?;
    let base_url = format!("http://{bound}/v1");
    if !bound.ip().is_loopback() {
        eprintln!("warning: {bound} is not a loopback address; whoever reaches it spends the budget");
    }
    if flags.json {
        let budget = budget.micro().to_string();
        println!("{}", json!({ "base_url": base_url, "budget_uusdc": budget, "payer": payer }));
    } else {
        println!("OPENAI_BASE_URL={base_url}");
        println!("OPENAI_API_KEY=unused");
        let spent = agents[0].buyer().signed_today();
        eprintln!("{payer} pays at most {budget} a day (UTC), {spent} of it spent today; Ctrl-C ends");
    }
    let buyer = agents[0].buyer().clone();
    let config = Config {
        agents,
        client: shop.http.with_deadline(HEAD_DEADLINE),
        budget_per_day: budget,
        when_unknown: match flags.when_unknown {
            Unknown::Wait => WhenUnknown::Wait,
            Unknown::PayAnother => WhenUnknown::PayAnother,
        },
        now: real_time(),
        lister: Some(Box::new(move |agent| lists(agent, chain_id, &key))),
    };
    proxy::serve(listener, config, until).await?;
    let left = buyer.left_in_channels();
    if !left.is_zero() {
        eprintln!(
            "{left} lie in channels and are not spent: the next proxy with this key goes on from them, `vivarium proxy \
             --refund` has them given back, and `vivarium proxy --withdraw` takes them from an agent that is gone"
        );
    }
    Ok(())
}

/// Says to an agent, by the payer's signature, who asks for a list.
fn lists(agent: &Agent, chain_id: u64, key: &PrivateKeySigner) -> Option<HeaderValue> {
    let at = match agent.whereabouts() {
        Whereabouts::Chain { clock, .. } => clock.reader()(),
        Whereabouts::Fixed(_) => real_time()(),
    };
    let signed = ListRequest::signed(agent.treasury(), chain_id, at, key).ok()?;
    HeaderValue::from_str(&serde_json::to_string(&signed).ok()?).ok()
}

/// Has every agent give back what is not spent; tries all before it fails.
async fn refund(agents: &[Agent]) -> Result<()> {
    let mut failed = 0;
    for agent in agents {
        let back = match agent.url().await {
            Ok(url) => agent.buyer().refund(&format!("{url}{PAID_ROUTE}")).await.map_err(anyhow::Error::from),
            Err(error) => Err(error),
        };
        match back {
            Ok(back) => println!("{back} came back from {}", agent.treasury()),
            Err(error) => {
                failed += 1;
                eprintln!("{}: {error:#}", agent.treasury());
            }
        }
    }
    let left = agents[0].buyer().left_in_channels();
    ensure!(failed == 0, "{left} still lie in channels; try again later");
    Ok(())
}

/// The channels with this many agents. At most the budget lies in all of them together.
fn channels_within(budget: Usdc, agents: usize) -> ChannelPolicy {
    let channels_in_all = u128::from(SLOTS) * u128::try_from(agents.max(1)).unwrap_or(u128::MAX);
    ChannelPolicy { deposit_calls: DEPOSIT_CALLS, ..channels(Usdc(budget.micro() / channels_in_all), SLOTS, LANE) }
}

/// The agents to buy from, the named one first. One budget and one record for all.
async fn agents(flags: &Flags, budget: Usdc, shop: &Shop, key: PrivateKeySigner) -> Result<Vec<Agent>> {
    let rpc_url = |record: &Record| record.chain.url().to_owned();
    let mut places = vec![(shop.record.clone(), shop.token)];
    for also in &flags.also {
        places.push(another(also, shop).await?);
    }
    let payer = key.address();
    // By payer: another key has a budget of its own, and two proxies with one key would each have the whole.
    // Without a world the folder may be new.
    let file = Folder::create(&flags.place.dir())?.join(format!("proxy-{payer}.record"));
    let quote_within = if places.len() > 1 { QUOTE_WITHIN_OF_MANY } else { QUOTE_WITHIN };
    let channels = channels_within(budget, places.len());
    let in_use = |error: pay::buyer::Error| match (error.kind, flags.refund || flags.withdraw) {
        (Kind::InUse, true) => anyhow!(
            "nothing was asked back: a `vivarium proxy` that pays with {payer} is running, and its channels pay for its \
             calls. End it with Ctrl-C, then say this again"
        ),
        (Kind::InUse, false) => anyhow!(
            "a `vivarium proxy` that pays with {payer} is running already, and two would each spend the whole budget. Use \
             that one, end it with Ctrl-C, or name another --key"
        ),
        _ => error.into(),
    };
    let limits = SpendLimits { per_day: Some(budget), per_host_day: None };
    let mut places = places.into_iter().map(|(record, token)| {
        // The days are bounded, not the life.
        let policy = policy(record.chain.chain_id(), token, record.treasury, flags.max_usdc, Usdc::MAX);
        (policy, record, ChainClock::default())
    });
    let (first, record, clock): (BuyerPolicy, _, _) = places.next().context("there is no agent")?;
    let buyer = Buyer::new(shop.http.with_deadline(HEAD_DEADLINE), key, first)
        .with_clock(clock.reader())
        .with_day_clock(real_time())
        .with_limits(limits)
        .with_quote_within(quote_within)
        .with_patience(PATIENCE)
        .with_chain(&rpc_url(&record))
        .with_record(&file)
        .map_err(in_use)?;
    let buyer = Scheme::apply(flags.scheme, buyer, channels);
    let mut agents = vec![Agent::new(buyer.clone(), Whereabouts::Chain { record, clock })];
    for (policy, record, clock) in places {
        let buyer = buyer.for_seller(policy, clock.reader()).with_chain(&rpc_url(&record));
        agents.push(Agent::new(buyer, Whereabouts::Chain { record, clock }));
    }
    Ok(agents)
}

/// What `--also` names, and the token that it is paid with.
async fn another(also: &str, shop: &Shop) -> Result<(Record, Address)> {
    let chain = &shop.record.chain;
    if also.starts_with("eip155:") {
        let agent: AgentId = also.parse().map_err(|refusal| anyhow!("--also: {refusal}"))?;
        return Ok((by_identity(chain.clone(), agent, shop.token, &shop.http).await?, shop.token));
    }
    if let Ok(treasury) = also.parse::<Address>() {
        let birth = chain.treasury(treasury).birth().await;
        let market = birth.with_context(|| format!("--also {treasury} cannot be read"))?.market;
        return Ok((Record::on(chain.clone(), treasury, market), shop.token));
    }
    let other = Place { data_dir: Some(also.into()) };
    let other = other.link().with_context(|| format!("--also {also} is no identity and no treasury's address"))?;
    Ok((other.record, other.world.usdc))
}

fn real_time() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_the_budget_lies_in_channels() {
        let budget = Usdc(1_000_003);
        for agents in 1..4 {
            let channels = channels_within(budget, agents);
            let all = channels.deposit_max.micro() * u128::from(channels.slots) * agents as u128;
            assert!(all <= budget.micro() && all > budget.micro() * 99 / 100, "{all}");
            assert_ne!(channels.lane, 1, "of `vivarium ask`");
        }
    }

    #[test]
    fn a_budget_is_usdc_a_day_and_nothing_else() {
        assert_eq!(parse_budget("1/day"), Ok(Usdc(1_000_000)));
        assert_eq!(parse_budget("0.25/day"), Ok(Usdc(250_000)));
        for wrong in ["1", "1/days", "1 /day", "/day", "-1/day", "0/day", "0.0000001/day", "1abc/day", "1/hour"] {
            assert!(parse_budget(wrong).is_err(), "{wrong}");
        }
    }
}
