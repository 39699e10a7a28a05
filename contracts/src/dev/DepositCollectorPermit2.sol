// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {IDepositCollector} from "./BatchSettlement.sol";
import {PERMIT2, Permit2, PermitTransferFrom, SignatureTransferDetails, TokenPermissions} from "./Permit2.sol";

/// @title Collects channel deposits by Permit2, for development chains only.
/// @notice The payer signs a `PermitWitnessTransferFrom` whose witness is the channel.
contract DepositCollectorPermit2 is IDepositCollector {
    /// Where the x402 `batch-settlement` contract is on every chain.
    address public constant BATCH_SETTLEMENT = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003;

    bytes32 private constant WITNESS_TYPEHASH = keccak256("DepositWitness(bytes32 channelId)");
    string private constant WITNESS =
        "DepositWitness witness)DepositWitness(bytes32 channelId)TokenPermissions(address token,uint256 amount)";

    error NotAllowed(address caller);

    /// `data`: (uint256 nonce, uint256 deadline, bytes permit2Signature, bytes eip2612Permit); the last is empty or
    /// (uint256 value, uint256 deadline, uint8 v, bytes32 r, bytes32 s) that lets Permit2 spend.
    function collect(address payer, address token, uint128 amount, bytes32 channelId, bytes calldata data) external {
        if (msg.sender != BATCH_SETTLEMENT) revert NotAllowed(msg.sender);
        (uint256 nonce, uint256 deadline, bytes memory signature, bytes memory permit) =
            abi.decode(data, (uint256, uint256, bytes, bytes));
        if (permit.length != 0) {
            (uint256 value, uint256 until, uint8 v, bytes32 r, bytes32 s) =
                abi.decode(permit, (uint256, uint256, uint8, bytes32, bytes32));
            // Somebody may have sent it already; then the allowance is there, or the transfer fails.
            try IERC20Permit(token).permit(payer, PERMIT2, value, until, v, r, s) {} catch {}
        }
        Permit2(PERMIT2).permitWitnessTransferFrom(
            PermitTransferFrom(TokenPermissions(token, amount), nonce, deadline),
            SignatureTransferDetails(msg.sender, amount),
            payer,
            keccak256(abi.encode(WITNESS_TYPEHASH, channelId)),
            WITNESS,
            signature
        );
    }
}
