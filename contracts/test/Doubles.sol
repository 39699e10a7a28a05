// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {ISwapRouter02} from "../src/interfaces/IPurchase.sol";
import {IUsdc} from "./World.sol";

// Stand-ins for contracts of others, each only as far as the tests need it. None of them is ever deployed elsewhere.

/// x402 batch settlement: channels, vouchers, claims, settlement, refunds. Its deposit pulls by EIP-3009 as the
/// canonical contract's collector does.
contract ChannelDouble {
    struct Channel {
        uint128 balance;
        uint128 totalClaimed;
    }

    struct Receiver {
        uint128 totalClaimed;
        uint128 totalSettled;
    }

    bytes32 private constant CONFIG = keccak256(
        "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
    );
    bytes32 private constant VOUCHER = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)");

    mapping(bytes32 id => Channel) public channels;
    mapping(address receiver => mapping(address token => Receiver)) public receivers;
    bool public isBroken; // refuses to settle

    function domain() public view returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("x402 Batch Settlement"), keccak256("1"), block.chainid, address(this)
            )
        );
    }

    function digest(bytes32 structHash) private view returns (bytes32) {
        return keccak256(abi.encodePacked("\x19\x01", domain(), structHash));
    }

    function getChannelId(ITreasury.ChannelConfig memory c) public view returns (bytes32) {
        return digest(keccak256(abi.encode(CONFIG, c)));
    }

    function voucherHash(ITreasury.ChannelConfig memory c, uint128 most) public view returns (bytes32) {
        return keccak256(abi.encode(VOUCHER, getChannelId(c), most));
    }

    function deposit(ITreasury.ChannelConfig calldata c, uint128 amount, address, bytes calldata signature) external {
        bytes32 id = getChannelId(c);
        IUsdc(c.token).receiveWithAuthorization(c.payer, address(this), amount, 0, type(uint256).max, id, signature);
        channels[id].balance += amount;
    }

    function claim(ITreasury.VoucherClaim[] calldata claims) external {
        for (uint256 i = 0; i < claims.length; ++i) {
            ITreasury.Voucher calldata v = claims[i].voucher;
            ITreasury.ChannelConfig calldata c = v.channel;
            require(msg.sender == c.receiver || msg.sender == c.receiverAuthorizer, "not the receiver");
            Channel storage channel = channels[getChannelId(c)];
            uint128 total = claims[i].totalClaimed;
            require(total > channel.totalClaimed && total <= v.maxClaimableAmount, "amount");
            require(total <= channel.balance, "balance");
            bytes32 hash = digest(voucherHash(c, v.maxClaimableAmount));
            require(SignatureChecker.isValidSignatureNow(c.payer, hash, claims[i].signature), "signature");
            receivers[c.receiver][c.token].totalClaimed += total - channel.totalClaimed;
            channel.totalClaimed = total;
        }
    }

    function settle(address receiver, address token) external {
        require(!isBroken, "broken");
        Receiver storage r = receivers[receiver][token];
        uint128 amount = r.totalClaimed - r.totalSettled;
        require(amount != 0, "nothing");
        r.totalSettled = r.totalClaimed;
        IUsdc(token).transfer(receiver, amount);
    }

    function refund(ITreasury.ChannelConfig calldata c, uint128 amount) external {
        require(msg.sender == c.receiver || msg.sender == c.receiverAuthorizer, "not the receiver");
        Channel storage channel = channels[getChannelId(c)];
        require(amount <= channel.balance - channel.totalClaimed, "balance");
        channel.balance -= amount;
        IUsdc(c.token).transfer(c.payer, amount);
    }

    /// A balance from nowhere, for payers that sign no deposit.
    function credit(ITreasury.ChannelConfig calldata c, uint128 amount) external {
        channels[getChannelId(c)].balance += amount;
    }

    function breakDown(bool broken) external {
        isBroken = broken;
    }
}

/// WETH9 as far as it goes: wrapped one to one.
contract WethDouble {
    mapping(address who => uint256) public balanceOf;

    function give(address to) external payable {
        balanceOf[to] += msg.value;
    }

    function withdraw(uint256 amount) external {
        balanceOf[msg.sender] -= amount;
        (bool sent,) = msg.sender.call{value: amount}("");
        require(sent, "no ETH");
    }
}

/// A pool behind SwapRouter02's ABI that gives what it was told to, whatever the price.
contract RouterDouble {
    WethDouble private immutable WETH;
    IUsdc private immutable USDC;
    uint256 public weiPerMicroUsdc;
    bool public looksAtMinimum = true;
    uint24 public feeAsked;

    constructor(WethDouble weth, IUsdc usdc) {
        (WETH, USDC) = (weth, usdc);
    }

    receive() external payable {}

    function set(uint256 rate, bool honest) external {
        (weiPerMicroUsdc, looksAtMinimum) = (rate, honest);
    }

    function exactInputSingle(ISwapRouter02.ExactInputSingleParams calldata p) external payable returns (uint256 out) {
        require(p.tokenIn == address(USDC) && p.tokenOut == address(WETH), "pool");
        feeAsked = p.fee;
        (bool done,) = address(USDC).call(
            abi.encodeWithSignature("transferFrom(address,address,uint256)", msg.sender, address(this), p.amountIn)
        );
        require(done, "pull");
        out = p.amountIn * weiPerMicroUsdc;
        require(!looksAtMinimum || out >= p.amountOutMinimum, "Too little received");
        WETH.give{value: out}(p.recipient);
    }
}

/// A price feed, and an uptime feed, by Chainlink's ABI.
contract FeedDouble {
    uint8 public immutable decimals;
    int256 private answer;
    uint256 private startedAt;
    uint256 private updatedAt;

    constructor(uint8 decimals_) {
        decimals = decimals_;
    }

    function set(int256 answer_, uint256 startedAt_, uint256 updatedAt_) external {
        (answer, startedAt, updatedAt) = (answer_, startedAt_, updatedAt_);
    }

    function latestRoundData() external view returns (uint80, int256, uint256, uint256, uint80) {
        return (1, answer, startedAt, updatedAt, 1);
    }
}

/// Permit2's signature transfer: whoever approved it once, pays by signature, contracts by ERC-1271.
contract Permit2Double {
    struct Permit {
        address token;
        uint256 amount;
        uint256 nonce;
        uint256 deadline;
    }

    error InvalidSigner();

    function digest(Permit memory p, address spender) public view returns (bytes32) {
        bytes32 permitted =
            keccak256(abi.encode(keccak256("TokenPermissions(address token,uint256 amount)"), p.token, p.amount));
        bytes32 kind = keccak256(
            "PermitTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline)TokenPermissions(address token,uint256 amount)"
        );
        bytes32 separator = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,uint256 chainId,address verifyingContract)"), keccak256("Permit2"),
                block.chainid, address(this)
            )
        );
        bytes32 hash = keccak256(abi.encode(kind, permitted, spender, p.nonce, p.deadline));
        return keccak256(abi.encodePacked("\x19\x01", separator, hash));
    }

    function permitTransferFrom(Permit calldata p, address to, address owner, bytes calldata signature) external {
        if (!SignatureChecker.isValidSignatureNow(owner, digest(p, msg.sender), signature)) revert InvalidSigner();
        (bool done,) = p.token.call(abi.encodeWithSignature("transferFrom(address,address,uint256)", owner, to, p.amount));
        require(done, "TRANSFER_FROM_FAILED");
    }
}

/// A dollar token of the older kind: no EIP-3009, no return values, approvals only from zero, a fee that can be
/// switched on, and an issuer who freezes accounts.
contract TetherDouble {
    mapping(address who => uint256) public balanceOf;
    mapping(address owner => mapping(address spender => uint256)) public allowance;
    mapping(address who => bool) public isBlackListed;
    uint256 public feeBps;
    uint8 public constant decimals = 6;

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function setFee(uint256 bps) external {
        feeBps = bps;
    }

    function setBlackListed(address who, bool listed) external {
        isBlackListed[who] = listed;
    }

    function approve(address spender, uint256 amount) external {
        require(amount == 0 || allowance[msg.sender][spender] == 0, "approve from zero");
        allowance[msg.sender][spender] = amount;
    }

    function transfer(address to, uint256 amount) external {
        move(msg.sender, to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) external {
        allowance[from][msg.sender] -= amount;
        move(from, to, amount);
    }

    function move(address from, address to, uint256 amount) private {
        require(!isBlackListed[from] && !isBlackListed[to], "blacklisted");
        uint256 fee = amount * feeBps / 10_000;
        balanceOf[from] -= amount;
        balanceOf[to] += amount - fee;
        balanceOf[address(1)] += fee;
    }
}

/// A token with a will of its own: it calls back whenever it moves, or says no instead of moving, as ERC-20 allows. It
/// takes every authorisation for signed.
contract WilfulDouble {
    mapping(address who => uint256) public balanceOf;
    mapping(address owner => mapping(address spender => uint256)) public allowance;
    uint256 public totalSupply;
    bool private says = true;
    address private where;
    bytes[] private inside;
    uint256 public calls; // back, so far
    mapping(uint256 call_ => bytes4) public heard; // how each was refused the last time; 0: it wasn't

    function mint(address to, uint256 amount) external {
        totalSupply += amount;
        balanceOf[to] += amount;
    }

    function say(bool yes) external {
        says = yes;
    }

    function callBack(address where_, bytes[] calldata inside_) external {
        where = where_;
        delete inside;
        for (uint256 i = 0; i < inside_.length; ++i) {
            inside.push(inside_[i]);
        }
    }

    function approve(address spender, uint256 amount) external returns (bool) {
        allowance[msg.sender][spender] = amount;
        return true;
    }

    function transfer(address to, uint256 amount) external returns (bool) {
        return move(msg.sender, to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) external returns (bool) {
        if (says) allowance[from][msg.sender] -= amount;
        return move(from, to, amount);
    }

    function transferWithAuthorization(
        address from, address to, uint256 value, uint256, uint256, bytes32, bytes calldata
    ) external {
        move(from, to, value);
    }

    function move(address from, address to, uint256 amount) private returns (bool) {
        if (!says) return false;
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
        address target = where;
        where = address(0); // not from within itself
        for (uint256 i = 0; target != address(0) && i < inside.length; ++i) {
            (bool done, bytes memory why) = target.call(inside[i]);
            ++calls;
            heard[i] = done ? bytes4(0) : bytes4(why);
        }
        where = target;
        return true;
    }
}

/// ERC-4337 as far as it goes: the account says whether an operation is its owner's, and then does it.
contract EntryPointDouble {
    function hashOf(address sender, address target, bytes memory data) public view returns (bytes32) {
        return keccak256(abi.encode(address(this), block.chainid, sender, target, data));
    }

    function handle(address sender, address target, bytes calldata data, bytes calldata signature) external {
        PackedUserOperation memory op;
        (op.sender, op.callData, op.signature) = (sender, data, signature);
        uint256 failed = IAccount(sender).validateUserOp(op, hashOf(sender, target, data), 0);
        require(failed == 0, "AA24 signature error");
        IAccount(sender).execute(target, 0, data);
    }
}

struct PackedUserOperation {
    address sender;
    uint256 nonce;
    bytes initCode;
    bytes callData;
    bytes32 accountGasLimits;
    uint256 preVerificationGas;
    bytes32 gasFees;
    bytes paymasterAndData;
    bytes signature;
}

interface IAccount {
    function validateUserOp(PackedUserOperation calldata op, bytes32 hash, uint256 missing) external returns (uint256);
    function execute(address target, uint256 value, bytes calldata data) external;
    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4);
}

/// ERC-6492's validator as far as it goes: calls what the wrapper names, then asks the signer.
contract UniversalDouble {
    bytes32 private constant MAGIC = 0x6492649264926492649264926492649264926492649264926492649264926492;
    bool public touched;

    function touch() external {
        touched = true;
    }

    function wrap(address target, bytes memory call_, bytes memory signature) external pure returns (bytes memory) {
        return bytes.concat(abi.encode(target, call_, signature), MAGIC);
    }

    function isValid(address signer, bytes32 hash, bytes calldata wrapped) external returns (bool) {
        (address target, bytes memory call_, bytes memory signature) =
            abi.decode(wrapped[:wrapped.length - 32], (address, bytes, bytes));
        (bool prepared,) = target.call(call_);
        prepared; // whatever came of it
        (bool done, bytes memory said) = signer.staticcall(abi.encodeCall(IAccount.isValidSignature, (hash, signature)));
        return done && said.length == 32 && bytes32(said) == bytes32(bytes4(0x1626ba7e));
    }
}

/// A contract that signs for whoever owns it, and does what its owner signed as a user operation.
contract SignerDouble {
    address private immutable OWNER;

    constructor(address owner) {
        OWNER = owner;
    }

    function validateUserOp(PackedUserOperation calldata op, bytes32 hash, uint256) external view returns (uint256) {
        return ECDSA.recoverCalldata(hash, op.signature) == OWNER ? 0 : 1;
    }

    function execute(address target, uint256, bytes calldata data) external {
        (bool done,) = target.call(data);
        require(done, "call");
    }

    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4) {
        return ECDSA.recoverCalldata(hash, signature) == OWNER ? bytes4(0x1626ba7e) : bytes4(0);
    }
}
