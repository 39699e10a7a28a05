// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {Multicall} from "@openzeppelin/contracts/utils/Multicall.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

/// Everything that names a channel. Its id is the whole EIP-712 digest of this struct.
struct ChannelConfig {
    address payer;
    address payerAuthorizer;
    address receiver;
    address receiverAuthorizer;
    address token;
    uint40 withdrawDelay;
    bytes32 salt;
}

struct Voucher {
    ChannelConfig channel;
    uint128 maxClaimableAmount;
}

/// "Of this voucher, so much has been earned in all."
struct VoucherClaim {
    Voucher voucher;
    bytes signature;
    uint128 totalClaimed;
}

/// What a deposit collector has to do: bring `amount` of the payer's tokens to the caller.
interface IDepositCollector {
    function collect(address payer, address token, uint128 amount, bytes32 channelId, bytes calldata data) external;
}

/// @title The x402 `batch-settlement` contract, for development chains only.
/// @notice An implementation of our own of the published ABI and EIP-712 types, put at the published address so that
/// unmodified clients work. It is not audited and not the published code: never deploy it where money has value.
/// On public chains the published contract is used.
///
/// As published: a refund is capped by balance − totalClaimed, so vouchers that were not claimed are not protected; one
/// invalid row reverts a whole claim; payerAuthorizer zero lets a contract payer sign by ERC-1271. A guess where the
/// publication is silent: a row that claims nothing new is passed over, and only the payer starts a withdrawal.
contract BatchSettlement is EIP712, Multicall, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    struct Channel {
        uint128 balance;
        uint128 totalClaimed;
    }

    struct Withdrawal {
        uint128 amount;
        uint40 initiatedAt;
    }

    struct Receiver {
        uint128 totalClaimed;
        uint128 totalSettled;
    }

    bytes32 public constant CHANNEL_CONFIG_TYPEHASH = keccak256(
        "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
    );
    bytes32 private constant VOUCHER_TYPEHASH = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)");
    bytes32 private constant REFUND_TYPEHASH = keccak256("Refund(bytes32 channelId,uint256 nonce,uint128 amount)");
    bytes32 private constant CLAIM_ENTRY_TYPEHASH =
        keccak256("ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)");
    bytes32 private constant CLAIM_BATCH_TYPEHASH = keccak256(
        "ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
    );
    uint40 public constant MIN_WITHDRAW_DELAY = 900;
    uint40 public constant MAX_WITHDRAW_DELAY = 30 days;

    mapping(bytes32 channelId => Channel) public channels;
    mapping(bytes32 channelId => Withdrawal) public pendingWithdrawals;
    mapping(bytes32 channelId => uint256) public refundNonce;
    mapping(address receiver => mapping(address token => Receiver)) public receivers;

    event Deposited(bytes32 indexed channelId, address indexed payer, uint128 amount);
    event Claimed(bytes32 indexed channelId, address indexed receiver, uint128 totalClaimed);
    event Settled(address indexed receiver, address indexed token, address indexed sender, uint128 amount);
    event Refunded(bytes32 indexed channelId, address indexed payer, uint128 amount);
    event WithdrawInitiated(bytes32 indexed channelId, uint128 amount, uint40 initiatedAt);
    event Withdrawn(bytes32 indexed channelId, address indexed payer, uint128 amount);

    error BadConfig();
    error BadSignature();
    error DepositMissing(uint256 received, uint128 wanted);
    error ExceedsBalance(bytes32 channelId);
    error ExceedsVoucher(bytes32 channelId);
    error NotAllowed(address caller);
    error NothingPending(bytes32 channelId);
    error NothingToSettle();
    error TooEarly(uint256 readyAt);
    error WrongRefundNonce(uint256 wanted);

    constructor() EIP712("x402 Batch Settlement", "1") {}

    // --- paying in ---

    /// Anyone may bring a deposit that the payer signed for; the collector proves it by delivering the tokens.
    function deposit(ChannelConfig calldata config, uint128 amount, address collector, bytes calldata collectorData)
        external
        nonReentrant
    {
        if (
            config.payer == address(0) || config.receiver == address(0) || config.receiverAuthorizer == address(0)
                || config.withdrawDelay < MIN_WITHDRAW_DELAY || config.withdrawDelay > MAX_WITHDRAW_DELAY || amount == 0
        ) revert BadConfig();
        bytes32 id = getChannelId(config);
        IERC20 token = IERC20(config.token);
        uint256 before = token.balanceOf(address(this));
        IDepositCollector(collector).collect(config.payer, config.token, amount, id, collectorData);
        uint256 received = token.balanceOf(address(this)) - before;
        if (received < amount) revert DepositMissing(received, amount);
        channels[id].balance += amount;
        emit Deposited(id, config.payer, amount);
    }

    // --- earning ---

    /// By the receiver or the receiverAuthorizer of every row.
    function claim(VoucherClaim[] calldata voucherClaims) external nonReentrant {
        for (uint256 i = 0; i < voucherClaims.length; ++i) {
            ChannelConfig calldata config = voucherClaims[i].voucher.channel;
            if (msg.sender != config.receiver && msg.sender != config.receiverAuthorizer) revert NotAllowed(msg.sender);
            _claim(voucherClaims[i]);
        }
    }

    /// By anyone, with one signature of the receiverAuthorizer that all rows share.
    function claimWithSignature(VoucherClaim[] calldata voucherClaims, bytes calldata authorizerSignature)
        external
        nonReentrant
    {
        bytes32 digest = getClaimBatchDigest(voucherClaims);
        for (uint256 i = 0; i < voucherClaims.length; ++i) {
            address authorizer = voucherClaims[i].voucher.channel.receiverAuthorizer;
            if (i == 0 || authorizer != voucherClaims[i - 1].voucher.channel.receiverAuthorizer) {
                if (!SignatureChecker.isValidSignatureNow(authorizer, digest, authorizerSignature)) {
                    revert BadSignature();
                }
            }
            _claim(voucherClaims[i]);
        }
    }

    /// By anyone: pays the receiver what was claimed for it.
    function settle(address receiver, address token) external nonReentrant {
        Receiver storage sums = receivers[receiver][token];
        uint128 amount = sums.totalClaimed - sums.totalSettled;
        if (amount == 0) revert NothingToSettle();
        sums.totalSettled = sums.totalClaimed;
        emit Settled(receiver, token, msg.sender, amount);
        IERC20(token).safeTransfer(receiver, amount);
    }

    // --- giving back ---

    /// By the receiver or the receiverAuthorizer.
    function refund(ChannelConfig calldata config, uint128 amount) external nonReentrant {
        if (msg.sender != config.receiver && msg.sender != config.receiverAuthorizer) revert NotAllowed(msg.sender);
        _refund(config, getChannelId(config), amount);
    }

    /// By anyone with the receiverAuthorizer's signature over the channel's next refund nonce.
    function refundWithSignature(
        ChannelConfig calldata config, uint128 amount, uint256 nonce, bytes calldata receiverAuthorizerSignature
    ) external nonReentrant {
        bytes32 id = getChannelId(config);
        if (nonce != refundNonce[id]) revert WrongRefundNonce(refundNonce[id]);
        bytes32 digest = getRefundDigest(id, nonce, amount);
        if (!SignatureChecker.isValidSignatureNow(config.receiverAuthorizer, digest, receiverAuthorizerSignature)) {
            revert BadSignature();
        }
        _refund(config, id, amount);
    }

    /// The payer's way out without the receiver: announce, wait `withdrawDelay`, take what was not claimed by then.
    function initiateWithdraw(ChannelConfig calldata config, uint128 amount) external nonReentrant {
        if (msg.sender != config.payer) revert NotAllowed(msg.sender);
        bytes32 id = getChannelId(config);
        Channel storage channel = channels[id];
        if (amount == 0 || amount > channel.balance - channel.totalClaimed) revert ExceedsBalance(id);
        pendingWithdrawals[id] = Withdrawal(amount, uint40(block.timestamp));
        emit WithdrawInitiated(id, amount, uint40(block.timestamp));
    }

    function finalizeWithdraw(ChannelConfig calldata config) external nonReentrant {
        bytes32 id = getChannelId(config);
        Withdrawal memory pending = pendingWithdrawals[id];
        if (pending.initiatedAt == 0) revert NothingPending(id);
        uint256 readyAt = uint256(pending.initiatedAt) + config.withdrawDelay;
        if (block.timestamp < readyAt) revert TooEarly(readyAt);
        delete pendingWithdrawals[id];
        Channel storage channel = channels[id];
        uint128 free = channel.balance - channel.totalClaimed;
        uint128 amount = pending.amount < free ? pending.amount : free;
        channel.balance -= amount;
        emit Withdrawn(id, config.payer, amount);
        IERC20(config.token).safeTransfer(config.payer, amount);
    }

    // --- reading ---

    function getChannelId(ChannelConfig calldata config) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(CHANNEL_CONFIG_TYPEHASH, config)));
    }

    function getVoucherDigest(bytes32 channelId, uint128 maxClaimableAmount) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, maxClaimableAmount)));
    }

    function getRefundDigest(bytes32 channelId, uint256 nonce, uint128 amount) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(REFUND_TYPEHASH, channelId, nonce, amount)));
    }

    function getClaimBatchDigest(VoucherClaim[] calldata voucherClaims) public view returns (bytes32) {
        bytes32[] memory entries = new bytes32[](voucherClaims.length);
        for (uint256 i = 0; i < voucherClaims.length; ++i) {
            VoucherClaim calldata row = voucherClaims[i];
            entries[i] = keccak256(
                abi.encode(
                    CLAIM_ENTRY_TYPEHASH, getChannelId(row.voucher.channel), row.voucher.maxClaimableAmount, row.totalClaimed
                )
            );
        }
        return _hashTypedDataV4(keccak256(abi.encode(CLAIM_BATCH_TYPEHASH, keccak256(abi.encodePacked(entries)))));
    }

    // --- inside ---

    function _claim(VoucherClaim calldata row) private {
        ChannelConfig calldata config = row.voucher.channel;
        bytes32 id = getChannelId(config);
        Channel storage channel = channels[id];
        if (row.totalClaimed > row.voucher.maxClaimableAmount) revert ExceedsVoucher(id);
        if (row.totalClaimed > channel.balance) revert ExceedsBalance(id);
        if (!_isVoucherSigned(config, getVoucherDigest(id, row.voucher.maxClaimableAmount), row.signature)) {
            revert BadSignature();
        }
        if (row.totalClaimed <= channel.totalClaimed) return;
        receivers[config.receiver][config.token].totalClaimed += row.totalClaimed - channel.totalClaimed;
        channel.totalClaimed = row.totalClaimed;
        emit Claimed(id, config.receiver, row.totalClaimed);
    }

    function _isVoucherSigned(ChannelConfig calldata config, bytes32 digest, bytes calldata signature)
        private
        view
        returns (bool)
    {
        if (config.payerAuthorizer == address(0)) {
            return SignatureChecker.isValidSignatureNow(config.payer, digest, signature);
        }
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, signature);
        return failure == ECDSA.RecoverError.NoError && signer == config.payerAuthorizer;
    }

    function _refund(ChannelConfig calldata config, bytes32 id, uint128 amount) private {
        Channel storage channel = channels[id];
        if (amount == 0 || amount > channel.balance - channel.totalClaimed) revert ExceedsBalance(id);
        channel.balance -= amount;
        ++refundNonce[id];
        uint128 free = channel.balance - channel.totalClaimed;
        if (pendingWithdrawals[id].amount > free) {
            if (free == 0) delete pendingWithdrawals[id];
            else pendingWithdrawals[id].amount = free;
        }
        emit Refunded(id, config.payer, amount);
        IERC20(config.token).safeTransfer(config.payer, amount);
    }
}
