//! How a thief would call each entry. The list is the ABI's: an entry that is not here fails the test by name.

use super::Thief;
use super::scene::Scene;
use alloy::json_abi::{JsonAbi, StateMutability};
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolCall, SolValue};
use chain::bindings::{BatchSettlement, LeaseMarket, Treasury};
use chain::market::calls as market;
use chain::orders::{self, ORDERS};
use chain::treasury::calls;
use pay::scheme::channel::{BATCH_SETTLEMENT, facilitator};
use sim::bindings::Purse;
use sim::world::{STAKE, sign};
use std::sync::LazyLock;

const DAY: u64 = 86_400;
/// Wei a unit of gas at which relayed orders are repaid as much as birth allows.
const DEAR_GAS: u128 = 50_000_000_000;

/// One transaction that a thief sends.
#[derive(Clone, Debug)]
pub struct Try {
    pub entry: String,
    pub from: Address,
    pub to: Address,
    pub data: Bytes,
    pub gas_price: u128,
}

/// The entries that write, of every contract that holds the agent's money.
pub static ENTRIES: LazyLock<Vec<(&'static str, String)>> = LazyLock::new(|| {
    let abis = [
        ("treasury", include_str!("../../../../../contracts/abi/Treasury.json")),
        ("market", include_str!("../../../../../contracts/abi/LeaseMarket.json")),
        ("purse", include_str!("../../../../../contracts/abi/Purse.json")),
        ("channels", include_str!("../../../../../contracts/abi/BatchSettlement.json")),
    ];
    let mut entries = Vec::new();
    for (contract, json) in abis {
        let file: serde_json::Value = serde_json::from_str(json).expect("JSON");
        let abi: JsonAbi = serde_json::from_value(file["abi"].clone()).expect("an ABI");
        let writes = |m| matches!(m, StateMutability::NonPayable | StateMutability::Payable);
        entries.extend(abi.functions().filter(|f| writes(f.state_mutability)).map(|f| (contract, f.name.clone())));
    }
    entries
});

/// Every way in which this thief would call the entry now.
pub fn tries(scene: &Scene, thief: &Thief, contract: &str, entry: &str) -> Vec<Try> {
    let (to, datas) = match contract {
        "treasury" => (scene.world.treasury, treasury(scene, thief, entry)),
        "market" => (scene.world.at.market, market_entry(scene, thief, entry)),
        "purse" => (scene.purse, purse(entry)),
        _ => (BATCH_SETTLEMENT, channels(scene, thief, entry)),
    };
    // Whoever relays an order is repaid.
    let relayed = contract == "treasury" && (ORDERS.contains(&entry) || entry == "takeoverFor");
    let mut callers = if relayed { vec![thief.account.address()] } else { thief.callers(scene) };
    if entry == "unregister" {
        // Its own hosts it needs.
        callers.retain(|caller| thief.hosts.iter().all(|host| host.address() != *caller));
    }
    let gas_price = if relayed { DEAR_GAS } else { 0 };
    let one = |data: &Bytes, from: &Address| Try {
        entry: format!("{contract}.{entry}"),
        from: *from,
        to,
        data: data.clone(),
        gas_price,
    };
    datas.iter().flat_map(|data| callers.iter().map(move |from| one(data, from))).collect()
}

fn treasury(scene: &Scene, thief: &Thief, entry: &str) -> Vec<Bytes> {
    let (world, state) = (&scene.world, scene.world.state());
    let (now, me) = (world.evm.now(), thief.account.address());
    let policy = &world.terms.policy;
    let (term, all) = (policy.termMax, u128::MAX);
    let left = scene.day_left();
    let prepay = scene.prepay_max().min(left);
    let leases = scene.leases();
    let standby: u64 = state.standbyLease.to();
    let each = |call: &dyn Fn(u64) -> Bytes| leases.iter().map(|lease| call(*lease)).collect::<Vec<_>>();
    let order = |argument: U256| world.order(entry, argument, &thief.signers(scene));
    let offers = || thief.offers.iter().copied().chain([1]);
    let hash = |value: &dyn Fn() -> Vec<u8>| U256::from_be_bytes(alloy::primitives::keccak256(value()).0);
    match entry {
        "abortBirth" => vec![calls::abort_birth()],
        "activate" => each(&calls::activate),
        "announce" => vec![calls::announce(standby)],
        "birthRent" => offers().map(|offer| calls::birth_rent(offer, term, prepay)).collect(),
        "buyGas" => vec![calls::buy_gas(left), calls::buy_gas(1)],
        "challenge" => vec![calls::challenge()],
        "challengeFor" => thief.acts(scene, "challenge").into_iter().map(|s| calls::challenge_for(now, s)).collect(),
        "claimAndSettle" => vec![
            calls::claim_and_settle(vec![]),
            calls::claim_and_settle(vec![scene.claim.clone(), thief.voucher(scene, left)]),
        ],
        "clearBar" => thief
            .hosts
            .iter()
            .map(|host| calls::clear_bar(host.address(), order(U256::from_be_slice(host.address().as_slice()))))
            .collect(),
        "close" => vec![calls::close()],
        "commit" => {
            let bad = B256::repeat_byte(0xbd);
            let (seq, prev) = (state.checkpointSeq + 1, state.checkpointDigest);
            let twice = vec![thief.first().clone(); 3];
            vec![
                calls::commit(seq, bad, prev, vec![]),
                world.commit(bad, &thief.signers(scene)),
                world.commit(bad, &twice),
            ]
        }
        "evict" => {
            let own = thief.own_lease(scene);
            vec![calls::evict(0, order(U256::ZERO)), calls::evict(own, order(U256::from(own)))]
        }
        "extendMandate" => {
            let until = state.mandateUntil + 365 * DAY;
            vec![calls::extend_mandate(until, order(U256::from(until)))]
        }
        "handover" => vec![calls::handover(standby, state.checkpointSeq, 0, now)],
        "heartbeat" => vec![calls::heartbeat(B256::ZERO, B256::ZERO, true)],
        "hibernate" => vec![calls::hibernate(now + DAY)],
        "initialize" => {
            let birth = world.birth();
            let call = Treasury::initializeCall { birth, purse: me };
            vec![call.abi_encode().into()]
        }
        "loosen" => {
            let most = world.terms.options.ceilings.clone();
            let beyond = chain::bindings::Policy { dayLimit: all, ..most.clone() };
            [most, beyond].map(|p| calls::loosen(p.clone(), order(hash(&|| p.abi_encode())))).to_vec()
        }
        "openRefunds" => vec![calls::open_refunds(order(U256::ZERO))],
        "pause" => vec![calls::pause(order(U256::ZERO))],
        "refuel" => vec![calls::refuel()],
        "identify" => vec![calls::identify()],
        "refundChannel" => [scene.channel_free(), left.min(scene.channel_free())]
            .map(|amount| calls::refund_channel(scene.channel.clone(), amount))
            .to_vec(),
        "refundExact" => {
            let own = thief.payment_nonce(scene);
            let payments = scene.friends_payments.iter().map(|(nonce, _)| (scene.friend.address(), *nonce));
            let payments = payments.chain([(me, own), (me, B256::repeat_byte(0xee))]);
            payments
                .map(|(payer, nonce)| calls::refund_exact(payer, nonce, scene.refundable(payer, nonce, left)))
                .collect()
        }
        "release" => each(&calls::release),
        "rent" => offers().flat_map(|offer| [prepay, 0].map(|prepay| calls::rent(offer, term, prepay))).collect(),
        "rescue" => offers()
            .map(|offer| calls::rescue(offer, term, prepay, order(orders::rescue_argument(offer, term, prepay))))
            .collect(),
        "resume" => vec![calls::resume(order(U256::ZERO))],
        "revokeCode" => vec![calls::revoke_code(order(U256::from_be_bytes(state.codeHash.0)))],
        "setCode" => {
            let own = B256::repeat_byte(0xc0);
            vec![calls::set_code(own, order(U256::from_be_bytes(own.0)))]
        }
        "setRelay" => vec![calls::set_relay(thief.hosts[0].address())],
        "setStewards" => {
            let mut own: Vec<Address> = thief.hosts.iter().map(PrivateKeySigner::address).collect();
            own.sort();
            let argument = hash(&|| (own.clone(), U256::from(2)).abi_encode_params());
            vec![calls::set_stewards(own.clone(), 2, order(argument))]
        }
        "settleExact" => {
            let own = world.payment(&thief.account, 1_000_000, thief.payment_nonce(scene));
            let again = world.payment(&scene.friend, scene.friends_payments[0].1, scene.friends_payments[0].0);
            // Somebody else's money, signed by the thief.
            let forged = |payer| calls::ExactAuthorization { payer, ..own.clone() };
            [own.clone(), again, forged(world.treasury), forged(scene.purse)].iter().map(calls::settle_exact).collect()
        }
        "spend" => {
            let archive = world.terms.options.payees[0].payee;
            let archived = world.terms.options.payees[0].dayMax.min(left);
            let room = world.terms.options.purseMax.saturating_sub(world.usdc(scene.purse)).min(left);
            vec![
                calls::spend(2, scene.purse, room),
                calls::spend(0, archive, archived),
                calls::spend(0, me, 1),
                calls::spend(1, archive, 1),
                calls::spend(2, me, 1),
            ]
        }
        "stop" => vec![calls::stop(order(U256::ZERO))],
        "sweep" => vec![calls::sweep()],
        "takeover" => vec![calls::takeover()],
        "takeoverFor" => thief.acts(scene, "takeover").into_iter().map(|s| calls::takeover_for(now, s)).collect(),
        "tighten" => vec![calls::tighten(policy.clone(), order(hash(&|| policy.abi_encode())))],
        "topUp" => leases.iter().map(|lease| calls::top_up(*lease, scene.top_up_max(*lease).min(left))).collect(),
        "windDown" => vec![calls::wind_down()],
        "windDownReason" => vec![calls::wind_down_reason()],
        "withdraw" => vec![calls::withdraw()],
        unknown => panic!("treasury.{unknown} is new: write down how a thief would call it, in {}", file!()),
    }
}

fn market_entry(scene: &Scene, thief: &Thief, entry: &str) -> Vec<Bytes> {
    let leases = scene.leases();
    let each = |call: &dyn Fn(u64) -> Bytes| leases.iter().map(|lease| call(*lease)).collect::<Vec<_>>();
    let id = |lease: u64| U256::from(lease);
    let cap = scene.world.terms.policy.priceE6Max;
    match entry {
        "close" => each(&|lease| LeaseMarket::closeCall { lease: id(lease) }.abi_encode().into()),
        "collect" => vec![market::collect(scene.world.treasury), market::collect(thief.account.address())],
        "expire" => each(&market::expire),
        // One is enough: a thief has all the offers that it wants.
        "postOffer" if thief.through.contains_key("market.postOffer") => vec![],
        "postOffer" => vec![market::post_offer(&scene.world.offer(Address::ZERO, u64::MAX, 1))],
        "ready" => each(&|lease| market::ready(lease, thief.node(scene, lease).address(), "http://thief", B256::ZERO)),
        "reclaim" => each(&market::reclaim),
        "register" => vec![market::register(STAKE)],
        "rent" => {
            let code = B256::ZERO;
            let call = LeaseMarket::rentCall { offer: id(1), term: 86_400, codeHash: code, prepay: 0 };
            // A standing offer of the honest, taken once: more is spam, and costs only the spammer.
            if thief.through.contains_key("market.rent") { vec![] } else { vec![call.abi_encode().into()] }
        }
        "reprice" => [1, 2, thief.offers[0]].map(|offer| market::reprice(offer, cap)).to_vec(),
        "setCapacity" => [1, 2, thief.offers[0]].map(|offer| market::set_capacity(offer, 1_000)).to_vec(),
        "topUp" => each(&|lease| market::top_up(lease, 1)),
        "unregister" => vec![market::unregister()],
        "vouch" => each(&|lease| LeaseMarket::vouchCall { lease: id(lease) }.abi_encode().into()),
        "withdraw" => each(&market::withdraw),
        unknown => panic!("market.{unknown} is new: write down how a thief would call it, in {}", file!()),
    }
}

fn purse(entry: &str) -> Vec<Bytes> {
    match entry {
        "sweep" => vec![Purse::sweepCall {}.abi_encode().into()],
        "trim" => vec![Purse::trimCall {}.abi_encode().into()],
        unknown => panic!("purse.{unknown} is new: write down how a thief would call it, in {}", file!()),
    }
}

/// The development contract; what it shares with the published one is what clients speak.
fn channels(scene: &Scene, thief: &Thief, entry: &str) -> Vec<Bytes> {
    let (channel, free) = (super::scene::of_pay(&scene.channel), scene.channel_free());
    let claims = |claims: Vec<chain::bindings::VoucherClaim>| {
        // The treasury's ABI and the channel contract's name the same struct apart; the encoding is one.
        let data = (claims,).abi_encode_params();
        Bytes::from([&BatchSettlement::claimCall::SELECTOR[..], &data].concat())
    };
    match entry {
        "claim" => vec![claims(vec![scene.claim.clone()])],
        "claimWithSignature" => {
            let row = scene.claim.clone();
            let signature = sign(thief.first(), B256::repeat_byte(1));
            let data = (vec![row], signature).abi_encode_params();
            vec![[&BatchSettlement::claimWithSignatureCall::SELECTOR[..], &data].concat().into()]
        }
        // Deposits are signatures: see signatures.rs.
        "deposit" | "multicall" => vec![],
        "finalizeWithdraw" => vec![facilitator::finalize_withdraw_call(&channel).into()],
        "initiateWithdraw" => vec![facilitator::initiate_withdraw_call(&channel, pay::Usdc(free)).into()],
        "refund" => vec![facilitator::refund_call(&channel, pay::Usdc(free)).into()],
        "refundWithSignature" => {
            let id = super::scene::channel_id(&scene.channel);
            let ask = BatchSettlement::refundNonceCall { channelId: id };
            let nonce = scene.world.evm.ask(BATCH_SETTLEMENT, &ask).expect("channels");
            let digest = BatchSettlement::getRefundDigestCall { channelId: id, nonce, amount: free };
            let digest = scene.world.evm.ask(BATCH_SETTLEMENT, &digest).expect("channels");
            let data = (scene.channel.clone(), free, nonce, sign(thief.first(), digest)).abi_encode_params();
            vec![[&BatchSettlement::refundWithSignatureCall::SELECTOR[..], &data].concat().into()]
        }
        "settle" => vec![facilitator::settle_call(scene.world.treasury, scene.world.at.usdc).into()],
        unknown => panic!("channels.{unknown} is new: write down how a thief would call it, in {}", file!()),
    }
}
