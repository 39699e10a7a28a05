// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {IDomain, IPurse} from "./interfaces/IPurse.sol";
import {ITreasury} from "./interfaces/ITreasury.sol";

/// @title Purse
/// @notice See IPurse. One per treasury, made at birth; it has no storage, no owner but the treasury, and knows one
/// token.
contract Purse is IPurse, IERC1271 {
    using SafeERC20 for IERC20;

    bytes32 private constant TRANSFER_TYPEHASH = keccak256(
        "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );

    address public immutable treasury;
    address public immutable token;
    uint128 public immutable cap;

    constructor(address treasury_, address token_, uint128 cap_) { (treasury, token, cap) = (treasury_, token_, cap_); }

    /// @inheritdoc IPurse
    function sweep() external {
        if (msg.sender != treasury) revert NotTreasury();
        _return(_balance());
    }

    /// @inheritdoc IPurse
    function trim() external {
        uint256 balance = _balance();
        if (balance > cap) _return(balance - cap);
    }

    /// @inheritdoc IPurse
    function isValidSignature(bytes32 hash, bytes calldata signature)
        external view override(IPurse, IERC1271) returns (bytes4)
    {
        (address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, bytes memory by) =
            abi.decode(signature, (address, uint256, uint256, uint256, bytes32, bytes));
        bytes32 transfer =
            keccak256(abi.encode(TRANSFER_TYPEHASH, address(this), to, value, validAfter, validBefore, nonce));
        if (hash != MessageHashUtils.toTypedDataHash(IDomain(token).DOMAIN_SEPARATOR(), transfer)) return 0;
        (address signer, ECDSA.RecoverError failed,) = ECDSA.tryRecover(hash, by);
        if (failed != ECDSA.RecoverError.NoError || signer != ITreasury(payable(treasury)).purseSigner()) return 0;
        return _balance() <= cap ? IERC1271.isValidSignature.selector : bytes4(0);
    }

    /// Never fails: a frozen purse must not stop a takeover.
    function _return(uint256 amount) private { if (amount != 0) IERC20(token).trySafeTransfer(treasury, amount); }

    function _balance() private view returns (uint256) { return IERC20(token).balanceOf(address(this)); }
}
