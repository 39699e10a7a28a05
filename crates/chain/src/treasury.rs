//! One agent's treasury: what it says at a block, and calldata for every entry.

use alloy::{
    eips::BlockId,
    primitives::{Address, B256, Bytes, U256},
    sol_types::{SolCall, SolValue},
};
use futures::future::{OptionFuture, try_join3};
use std::collections::BTreeSet;

use crate::{
    bindings::{
        Addresses, Approval, Birth, ChannelConfig, Policy, Standing, State, Treasury, TreasuryFactory, VoucherClaim,
    },
    error::{Error, Kind},
    market::{LeaseView, MarketClient, OfferView, id},
    rpc::{Chain, Head},
};

/// Reads of one treasury.
#[derive(Clone, Debug)]
pub struct TreasuryClient {
    /// The endpoint asked.
    pub chain: Chain,
    /// The treasury.
    pub address: Address,
}

/// Everything a node wants to know of the chain, all of it at one block.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The block.
    pub head: Head,
    /// The treasury.
    pub state: State,
    /// Its limits: birth's, as a quorum has changed them since.
    pub limits: Policy,
    /// The lease whose node key is (or was last) the operator.
    pub active: Option<LeaseView>,
    /// The lease to move to.
    pub standby: Option<LeaseView>,
    /// The lease that was active before the last handover.
    pub draining: Option<LeaseView>,
    /// The market's newest offers, without those of providers that an eviction barred.
    pub offers: Vec<OfferView>,
    /// The operator's ETH, wei; zero when there is no operator.
    pub operator_wei: U256,
    /// The relay's ETH, wei; zero when there is no relay.
    pub relay_wei: U256,
    /// The treasury's ETH, wei.
    pub treasury_wei: U256,
}

impl TreasuryClient {
    /// Refuses an address that is no treasury.
    ///
    /// # Errors
    /// `Missing`, or `Rpc`.
    pub async fn verify(&self) -> Result<(), Error> {
        self.chain.verify_code("treasury", self.address).await?;
        match self.state().await {
            Err(e) if matches!(e.kind, Kind::Missing | Kind::Reverted(_)) => {
                Err(Error::missing(format!("the contract at {} is no treasury", self.address)).with_source(e))
            }
            other => other.map(drop),
        }
    }

    /// The state in the newest block.
    ///
    /// # Errors
    /// `Rpc`, or `Missing` when this is no treasury.
    pub async fn state(&self) -> Result<State, Error> {
        self.state_at(BlockId::latest()).await
    }

    /// The state at a block.
    ///
    /// # Errors
    /// As [`TreasuryClient::state`].
    pub async fn state_at(&self, at: BlockId) -> Result<State, Error> {
        self.chain.read(self.address, Treasury::stateCall {}, at).await
    }

    /// What was fixed at birth. The creator reads as zero after `activate`; `mandateUntil`, stewards and policy are the
    /// present ones.
    ///
    /// # Errors
    /// As [`TreasuryClient::state`].
    pub async fn birth(&self) -> Result<Birth, Error> {
        self.birth_at(BlockId::latest()).await
    }

    async fn birth_at(&self, at: BlockId) -> Result<Birth, Error> {
        self.chain.read(self.address, Treasury::birthOfCall {}, at).await
    }

    /// What `state` has no room for: purse, sleep, notice, identity.
    ///
    /// # Errors
    /// As [`TreasuryClient::state`].
    pub async fn standing(&self) -> Result<Standing, Error> {
        self.chain.read(self.address, Treasury::standingCall {}, BlockId::latest()).await
    }

    /// What was settled under (payer, nonce) and how much of it went back: `(amount, refunded)`, micro-USDC.
    ///
    /// # Errors
    /// As [`TreasuryClient::state`].
    pub async fn recorded(&self, payer: Address, nonce: B256) -> Result<(U256, U256), Error> {
        let call = Treasury::recordedCall { payer, nonce };
        let answer = self.chain.read(self.address, call, BlockId::latest()).await?;
        Ok((answer.amount, answer.refunded))
    }

    /// Everything a node wants to know, at the newest block, in four round trips.
    ///
    /// # Errors
    /// `Rpc` (also when the block is reorged away in between: try again), `Missing` when addresses are wrong.
    pub async fn snapshot(&self, market: Address) -> Result<Snapshot, Error> {
        let head = self.chain.head().await?;
        self.snapshot_at(market, head).await
    }

    /// The same at a block the caller already has.
    ///
    /// # Errors
    /// As [`TreasuryClient::snapshot`].
    pub async fn snapshot_at(&self, market: Address, head: Head) -> Result<Snapshot, Error> {
        let at = BlockId::hash(head.hash);
        let market = MarketClient { chain: self.chain.clone(), address: market };
        let (state, birth, mut offers) = try_join3(self.state_at(at), self.birth_at(at), market.offers_at(at)).await?;
        let [active, standby, draining] = [state.activeLease, state.standbyLease, state.drainingLease];
        let leases = try_join3(
            self.lease_view(&market, active, at),
            self.lease_view(&market, standby, at),
            self.lease_view(&market, draining, at),
        );
        let wei =
            try_join3(self.wei_of(state.operator, at), self.wei_of(state.relay, at), self.wei_of(self.address, at));
        let ((active, standby, draining), (operator_wei, relay_wei, treasury_wei), barred) =
            try_join3(leases, wei, self.barred_at(&offers, at)).await?;
        offers.retain(|o| !barred.contains(&o.offer.provider));
        let limits = birth.policy;
        Ok(Snapshot { head, state, limits, active, standby, draining, offers, operator_wei, relay_wei, treasury_wei })
    }

    /// Which of the offers' providers an eviction barred, at a block.
    ///
    /// # Errors
    /// `Rpc`.
    pub async fn barred_at(&self, offers: &[OfferView], at: BlockId) -> Result<BTreeSet<Address>, Error> {
        let providers: BTreeSet<Address> = offers.iter().map(|o| o.offer.provider).collect();
        let calls = providers.iter().map(|provider| (self.address, Treasury::isBarredCall { provider: *provider }));
        let answers = self.chain.read_many(calls, at).await?;
        let mut barred = BTreeSet::new();
        for (provider, is_barred) in providers.into_iter().zip(answers) {
            if is_barred? {
                barred.insert(provider);
            }
        }
        Ok(barred)
    }

    async fn lease_view(&self, market: &MarketClient, lease: U256, at: BlockId) -> Result<Option<LeaseView>, Error> {
        let lease = id(lease)?;
        OptionFuture::from((lease != 0).then(|| market.lease_at(lease, at))).await.transpose()
    }

    async fn wei_of(&self, account: Address, at: BlockId) -> Result<U256, Error> {
        if account.is_zero() {
            return Ok(U256::ZERO);
        }
        self.chain.eth_balance(account, at).await
    }
}

/// The address that the factory will give this birth (its CREATE2 salt commits to every field). Money may be sent
/// there before the treasury exists.
///
/// # Errors
/// `Rpc`, or `Missing` when there is no factory.
pub async fn predict(chain: &Chain, addresses: &Addresses, birth: &Birth) -> Result<Address, Error> {
    let data = calls::with_birth(TreasuryFactory::predictCall::SELECTOR, birth);
    let request = alloy::rpc::types::TransactionRequest::default().to(addresses.factory).input(data.into());
    let answer: Bytes = chain.request("eth_call", (request, BlockId::latest())).await?;
    TreasuryFactory::predictCall::abi_decode_returns(&answer)
        .map_err(|e| Error::missing(format!("no treasury factory at {}", addresses.factory)).with_source(e))
}

/// Gas for `refuel`, not to be estimated: an estimate sees the sender's whole balance and finds nothing to top up, while
/// in a block the sender has paid for its gas first, falls below the target and is topped up, which costs more. It then
/// ran out of gas, and a replay did not.
pub const REFUEL_GAS: u64 = 400_000;

/// What `spend` and `Spent` call the purse, in the contract's order of kinds.
pub const KIND_PURSE: u8 = 2;
/// The payees that take money for keeping data.
pub const KIND_STORAGE: u8 = 0;

/// Calldata for every entry of the treasury and for `TreasuryFactory.create`.
pub mod calls {
    use super::*;

    /// The factory's ABI names its own copy of `Birth`; the encoding is one and the same.
    pub(super) fn with_birth(selector: [u8; 4], birth: &Birth) -> Bytes {
        [&selector[..], &(birth.clone(),).abi_encode_params()].concat().into()
    }

    /// Creator, to the factory: makes the treasury. The transaction's value is the agent's first gas.
    pub fn create(birth: &Birth) -> Bytes {
        with_birth(TreasuryFactory::createCall::SELECTOR, birth)
    }

    /// Creator: the first lease. `term` in seconds, `prepay` in micro-USDC.
    pub fn birth_rent(offer: u64, term: u32, prepay: u128) -> Bytes {
        Treasury::birthRentCall { offer: U256::from(offer), term, prepay }.abi_encode().into()
    }

    /// Creator: the birth lease's node key becomes operator of epoch 1, the creator is forgotten.
    pub fn activate(lease: u64) -> Bytes {
        Treasury::activateCall { lease: U256::from(lease) }.abi_encode().into()
    }

    /// Anyone, when the birth was not activated in time: seed and gas go back to the creator.
    pub fn abort_birth() -> Bytes {
        Treasury::abortBirthCall {}.abi_encode().into()
    }

    /// Anyone: registers the treasury in the identity registry of its birth, or corrects what is written there.
    pub fn identify() -> Bytes {
        Treasury::identifyCall {}.abi_encode().into()
    }

    /// Operator: rents the standby.
    pub fn rent(offer: u64, term: u32, prepay: u128) -> Bytes {
        Treasury::rentCall { offer: U256::from(offer), term, prepay }.abi_encode().into()
    }

    /// Operator: adds `amount` micro-USDC to a lease's escrow.
    pub fn top_up(lease: u64, amount: u128) -> Bytes {
        Treasury::topUpCall { lease: U256::from(lease), amount }.abi_encode().into()
    }

    /// Operator: closes the standby or the draining lease.
    pub fn release(lease: u64) -> Bytes {
        Treasury::releaseCall { lease: U256::from(lease) }.abi_encode().into()
    }

    /// Operator: alive; vouches for the active lease, and for the standby if it answered.
    pub fn heartbeat(instance: B256, receipts_root: B256, standby_answered: bool) -> Bytes {
        let call = Treasury::heartbeatCall { instance, receiptsRoot: receipts_root, standbyAnswered: standby_answered };
        call.abi_encode().into()
    }

    /// Operator: the next checkpoint with k acknowledgements in ascending order of signer
    /// ([`crate::orders::collect`]).
    pub fn commit(seq: u64, digest: B256, prev: B256, acks: Vec<Bytes>) -> Bytes {
        Treasury::commitCall { seq, digest, prev, acks }.abi_encode().into()
    }

    /// Operator: says that a handover to this lease follows.
    pub fn announce(lease: u64) -> Bytes {
        Treasury::announceCall { lease: U256::from(lease) }.abi_encode().into()
    }

    /// Operator: the lease's node key takes over with the next epoch. `valid_until` in chain seconds.
    pub fn handover(lease: u64, seq: u64, cut: u64, valid_until: u64) -> Bytes {
        Treasury::handoverCall { lease: U256::from(lease), seq, cut, validUntil: valid_until }.abi_encode().into()
    }

    /// Operator: names the key that relays strangers' settlements.
    pub fn set_relay(relay: Address) -> Bytes {
        Treasury::setRelayCall { relay }.abi_encode().into()
    }

    /// Standby's node key or a steward: answer, or be taken over.
    pub fn challenge() -> Bytes {
        Treasury::challengeCall {}.abi_encode().into()
    }

    /// Standby's node key, after an unanswered challenge (or a rescue).
    pub fn takeover() -> Bytes {
        Treasury::takeoverCall {}.abi_encode().into()
    }

    /// An EIP-3009 authorisation whose `to` is the treasury, as [`settle_exact`] takes it.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct ExactAuthorization {
        /// Who pays.
        pub payer: Address,
        /// Micro-USDC.
        pub value: U256,
        /// Chain seconds; not before.
        pub valid_after: U256,
        /// Chain seconds; not at or after.
        pub valid_before: U256,
        /// The payer's, used once.
        pub nonce: B256,
        /// 65 bytes r, s, v.
        pub signature: Bytes,
    }

    /// Anyone: collects an authorised payment and records it under (payer, nonce).
    pub fn settle_exact(authorization: &ExactAuthorization) -> Bytes {
        let a = authorization.clone();
        let call = Treasury::settleExactCall {
            payer: a.payer,
            value: a.value,
            validAfter: a.valid_after,
            validBefore: a.valid_before,
            nonce: a.nonce,
            signature: a.signature,
        };
        call.abi_encode().into()
    }

    /// Operator: gives back some or all of what was recorded under (payer, nonce). Micro-USDC.
    pub fn refund_exact(payer: Address, nonce: B256, amount: u128) -> Bytes {
        Treasury::refundExactCall { payer, nonce, amount: U256::from(amount) }.abi_encode().into()
    }

    /// Operator: claims vouchers of the treasury's channels and settles; refused rows are skipped.
    pub fn claim_and_settle(claims: Vec<VoucherClaim>) -> Bytes {
        Treasury::claimAndSettleCall { claims }.abi_encode().into()
    }

    /// Operator, or anyone once refunds are open: gives a channel's payer `amount` micro-USDC of its balance back.
    pub fn refund_channel(config: ChannelConfig, amount: u128) -> Bytes {
        Treasury::refundChannelCall { config, amount }.abi_encode().into()
    }

    /// Operator: pays one of birth's payees, or fills the purse. `kind`: 0 storage, 1 tools, [`super::KIND_PURSE`].
    pub fn spend(kind: u8, payee: Address, amount: u128) -> Bytes {
        Treasury::spendCall { kind, payee, amount }.abi_encode().into()
    }

    /// Operator: buys ETH for at most `max` micro-USDC.
    pub fn buy_gas(max: u128) -> Bytes {
        Treasury::buyGasCall { max }.abi_encode().into()
    }

    /// Operator: closes every lease and sleeps; only the quorum's `rescue` wakes. Chain seconds.
    pub fn hibernate(until: u64) -> Bytes {
        Treasury::hibernateCall { until }.abi_encode().into()
    }

    /// Anyone, with the standby's node key's signature over `Act("challenge", ..)`.
    pub fn challenge_for(deadline: u64, signature: Bytes) -> Bytes {
        Treasury::challengeForCall { deadline, signature }.abi_encode().into()
    }

    /// The same for a takeover; whoever relays it is repaid within birth's bound.
    pub fn takeover_for(deadline: u64, signature: Bytes) -> Bytes {
        Treasury::takeoverForCall { deadline, signature }.abi_encode().into()
    }

    /// Anyone: tops the operator's and the relay's gas up. Send it with [`REFUEL_GAS`].
    pub fn refuel() -> Bytes {
        Treasury::refuelCall {}.abi_encode().into()
    }

    /// Quorum order `("pause", 0)`.
    pub fn pause(a: Approval) -> Bytes {
        Treasury::pauseCall { a }.abi_encode().into()
    }

    /// Quorum order `("resume", 0)`.
    pub fn resume(a: Approval) -> Bytes {
        Treasury::resumeCall { a }.abi_encode().into()
    }

    /// Quorum order `("stop", 0)`.
    pub fn stop(a: Approval) -> Bytes {
        Treasury::stopCall { a }.abi_encode().into()
    }

    /// Quorum order `("evict", keep)`; 0 keeps no lease.
    pub fn evict(keep: u64, a: Approval) -> Bytes {
        Treasury::evictCall { keep: U256::from(keep), a }.abi_encode().into()
    }

    /// Quorum order `("rescue", offer)`.
    pub fn rescue(offer: u64, term: u32, prepay: u128, a: Approval) -> Bytes {
        Treasury::rescueCall { offer: U256::from(offer), term, prepay, a }.abi_encode().into()
    }

    /// Quorum order `("extendMandate", until)`, chain seconds.
    pub fn extend_mandate(until: u64, a: Approval) -> Bytes {
        Treasury::extendMandateCall { until, a }.abi_encode().into()
    }

    /// Quorum order `("clearBar", uint160(provider))`: undoes what `evict` barred.
    pub fn clear_bar(provider: Address, a: Approval) -> Bytes {
        Treasury::clearBarCall { provider, a }.abi_encode().into()
    }

    /// Quorum order `("revokeCode", codeHash)`, at once.
    pub fn revoke_code(a: Approval) -> Bytes {
        Treasury::revokeCodeCall { a }.abi_encode().into()
    }

    /// Quorum order `("tighten", keccak256(abi.encode(policy)))`, at once.
    pub fn tighten(policy: Policy, a: Approval) -> Bytes {
        Treasury::tightenCall { policy, a }.abi_encode().into()
    }

    /// Quorum order `("openRefunds", 0)`.
    pub fn open_refunds(a: Approval) -> Bytes {
        Treasury::openRefundsCall { a }.abi_encode().into()
    }

    /// Quorum order `("setCode", codeHash)`: queues; after the delay anyone sends it again with an empty approval.
    pub fn set_code(code_hash: B256, a: Approval) -> Bytes {
        Treasury::setCodeCall { codeHash: code_hash, a }.abi_encode().into()
    }

    /// Quorum order `("loosen", keccak256(abi.encode(policy)))`, in two steps like `set_code`.
    pub fn loosen(policy: Policy, a: Approval) -> Bytes {
        Treasury::loosenCall { policy, a }.abi_encode().into()
    }

    /// Quorum order `("setStewards", keccak256(abi.encode(stewards, threshold)))`, in two steps like `set_code`.
    pub fn set_stewards(stewards: Vec<Address>, threshold: u8, a: Approval) -> Bytes {
        Treasury::setStewardsCall { stewards, threshold, a }.abi_encode().into()
    }

    /// What `windDown` would say to the caller; for `eth_call`.
    pub fn wind_down_reason() -> Bytes {
        Treasury::windDownReasonCall {}.abi_encode().into()
    }

    /// Anyone, when stopped, starved, frozen or past the mandate. Starved or frozen: the first call posts a notice.
    pub fn wind_down() -> Bytes {
        Treasury::windDownCall {}.abi_encode().into()
    }

    /// Anyone, after the refund window.
    pub fn close() -> Bytes {
        Treasury::closeCall {}.abi_encode().into()
    }

    /// Anyone, when closed: late arrivals become withdrawable.
    pub fn sweep() -> Bytes {
        Treasury::sweepCall {}.abi_encode().into()
    }

    /// The beneficiary, when closed: pulls everything.
    pub fn withdraw() -> Bytes {
        Treasury::withdrawCall {}.abi_encode().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::market;
    use alloy::json_abi::{JsonAbi, StateMutability};
    use std::collections::BTreeSet;

    /// Names of the entries that write, by the committed ABI.
    fn entries(json: &str) -> (JsonAbi, BTreeSet<String>) {
        let file: serde_json::Value = serde_json::from_str(json).expect("JSON");
        let abi: JsonAbi = serde_json::from_value(file["abi"].clone()).expect("an ABI");
        let writes = |m| matches!(m, StateMutability::NonPayable | StateMutability::Payable);
        let names = abi.functions().filter(|f| writes(f.state_mutability)).map(|f| f.name.clone()).collect();
        (abi, names)
    }

    fn named(abi: &JsonAbi, calls: &[Bytes]) -> BTreeSet<String> {
        let name = |call: &Bytes| abi.functions().find(|f| f.selector() == call[..4]).map(|f| f.name.clone());
        calls.iter().map(|call| name(call).expect("in the ABI")).collect()
    }

    #[test]
    fn every_entry_of_the_treasury_has_a_builder() {
        let (abi, mut entries) = entries(include_str!("../../../contracts/abi/Treasury.json"));
        // Called by the factory alone.
        entries.remove("initialize");
        let approval = || Approval { deadline: 0, signatures: Vec::new() };
        let exact = calls::ExactAuthorization {
            payer: Address::ZERO,
            value: U256::ZERO,
            valid_after: U256::ZERO,
            valid_before: U256::ZERO,
            nonce: B256::ZERO,
            signature: Bytes::new(),
        };
        let built = [
            calls::birth_rent(1, 1, 1),
            calls::activate(1),
            calls::abort_birth(),
            calls::rent(1, 1, 1),
            calls::top_up(1, 1),
            calls::release(1),
            calls::heartbeat(B256::ZERO, B256::ZERO, true),
            calls::commit(1, B256::ZERO, B256::ZERO, Vec::new()),
            calls::announce(1),
            calls::handover(1, 1, 1, 1),
            calls::set_relay(Address::ZERO),
            calls::challenge(),
            calls::takeover(),
            calls::settle_exact(&exact),
            calls::refund_exact(Address::ZERO, B256::ZERO, 1),
            calls::claim_and_settle(Vec::new()),
            calls::refund_channel(ChannelConfig::default(), 1),
            calls::spend(0, Address::ZERO, 1),
            calls::buy_gas(1),
            calls::hibernate(1),
            calls::challenge_for(1, Bytes::new()),
            calls::takeover_for(1, Bytes::new()),
            calls::revoke_code(approval()),
            calls::tighten(Policy::default(), approval()),
            calls::open_refunds(approval()),
            calls::set_code(B256::ZERO, approval()),
            calls::loosen(Policy::default(), approval()),
            calls::set_stewards(Vec::new(), 1, approval()),
            calls::wind_down_reason(),
            calls::refuel(),
            calls::identify(),
            calls::pause(approval()),
            calls::resume(approval()),
            calls::stop(approval()),
            calls::evict(1, approval()),
            calls::rescue(1, 1, 1, approval()),
            calls::extend_mandate(1, approval()),
            calls::clear_bar(Address::ZERO, approval()),
            calls::wind_down(),
            calls::close(),
            calls::sweep(),
            calls::withdraw(),
        ];
        assert_eq!(named(&abi, &built), entries);
    }

    #[test]
    fn every_entry_of_the_market_but_the_tenants_has_a_builder() {
        let (abi, mut entries) = entries(include_str!("../../../contracts/abi/LeaseMarket.json"));
        // Tenants are treasuries, and call from there.
        for tenants in ["rent", "vouch", "close"] {
            assert!(entries.remove(tenants));
        }
        let offer = crate::bindings::Offer {
            provider: Address::ZERO,
            priceE6: 1,
            capacity: 1,
            used: 0,
            minTerm: 1,
            maxTerm: 1,
            memoryMiB: 1,
            milliCpu: 1,
            usePolicy: B256::ZERO,
            endpoint: String::new(),
            abuseContact: String::new(),
        };
        let built = [
            market::calls::register(1),
            market::calls::unregister(),
            market::calls::post_offer(&offer),
            market::calls::reprice(1, 1),
            market::calls::set_capacity(1, 1),
            market::calls::ready(1, Address::ZERO, "", B256::ZERO),
            market::calls::withdraw(1),
            market::calls::top_up(1, 1),
            market::calls::reclaim(1),
            market::calls::expire(1),
            market::calls::collect(Address::ZERO),
        ];
        assert_eq!(named(&abi, &built), entries);
    }
}
