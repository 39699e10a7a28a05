// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// The cheat codes of forge that these tests use.
interface Vm {
    struct Log {
        bytes32[] topics;
        bytes data;
        address emitter;
    }

    function addr(uint256 key) external pure returns (address);
    function sign(uint256 key, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function warp(uint256 time) external;
    function roll(uint256 number) external;
    function txGasPrice(uint256 price) external;
    function etch(address where, bytes calldata code) external;
    function load(address who, bytes32 slot) external view returns (bytes32);
    function deal(address who, uint256 amount) external;
    function prank(address sender) external;
    function assume(bool condition) external pure;
    function getCode(string calldata artifact) external view returns (bytes memory);
    function expectRevert() external;
    function expectRevert(bytes calldata data) external;
    function expectPartialRevert(bytes4 selector) external;
    function recordLogs() external;
    function getRecordedLogs() external returns (Log[] memory);
    function snapshotGasLastCall(string calldata group, string calldata name) external returns (uint256 gas);
    function toString(uint256 value) external pure returns (string memory);
}

/// @title Assertions, bounds and what forge's invariant runner asks of a test contract.
abstract contract Cheats {
    Vm internal constant vm = Vm(0x7109709ECfa91a80626fF3989D68f67F5b1DD12D);
    bool public constant IS_TEST = true;

    error NotEqual(string what, uint256 got, uint256 wanted);
    error Untrue(string what);

    function eq(uint256 got, uint256 wanted, string memory what) internal pure {
        if (got != wanted) revert NotEqual(what, got, wanted);
    }

    function eq(address got, address wanted, string memory what) internal pure {
        eq(uint160(got), uint160(wanted), what);
    }

    function eq(bytes32 got, bytes32 wanted, string memory what) internal pure {
        eq(uint256(got), uint256(wanted), what);
    }

    function yes(bool holds, string memory what) internal pure {
        if (!holds) revert Untrue(what);
    }

    function no(bool holds, string memory what) internal pure {
        yes(!holds, what);
    }

    /// A number in lo..=hi that depends on x alone.
    function bound(uint256 x, uint256 lo, uint256 hi) internal pure returns (uint256) {
        return x >= lo && x <= hi ? x : lo + x % (hi - lo + 1);
    }

    function min(uint256 a, uint256 b) internal pure returns (uint256) {
        return a < b ? a : b;
    }

    /// Deploys `out/<name>.sol/<name>.json`: the very bytecode that is shipped, not a copy compiled for the test.
    function deploy(string memory name, bytes memory arguments) internal returns (address made) {
        bytes memory code = bytes.concat(vm.getCode(string.concat("out/", name, ".sol/", name, ".json")), arguments);
        assembly {
            made := create(0, add(code, 32), mload(code))
        }
        yes(made != address(0), string.concat("deployed ", name));
    }
}
