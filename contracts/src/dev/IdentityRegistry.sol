// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ERC721} from "@openzeppelin/contracts/token/ERC721/ERC721.sol";
import {ERC721URIStorage} from "@openzeppelin/contracts/token/ERC721/extensions/ERC721URIStorage.sol";
import {IIdentityRegistry} from "../interfaces/IIdentityRegistry.sol";

/// @title An identity registry of ERC-8004's ABI, for development chains only.
/// @notice Written from the published ABI: numbers begin at 0, the wallet of a new identity is its owner and is
/// forgotten when the token moves, and only the token's holder (or whom it approved) changes URI and metadata. Wallets
/// set by signature (`setAgentWallet`) are left out: a treasury signs nothing.
/// @dev Its code is put at the published address, so nothing may rest on the constructor: name and symbol are code.
contract IdentityRegistry is IIdentityRegistry, ERC721URIStorage {
    struct MetadataEntry {
        string metadataKey;
        bytes metadataValue;
    }

    event Registered(uint256 indexed agentId, string agentURI, address indexed owner);
    event URIUpdated(uint256 indexed agentId, string newURI, address indexed updatedBy);
    event MetadataSet(
        uint256 indexed agentId, string indexed indexedMetadataKey, string metadataKey, bytes metadataValue
    );

    error NotAuthorized();
    error ReservedKey();

    uint256 private _next;
    mapping(uint256 agentId => address) private _wallets;
    mapping(uint256 agentId => mapping(string key => bytes)) private _metadata;

    constructor() ERC721("", "") {}

    function name() public pure override returns (string memory) {
        return "AgentIdentity";
    }

    function symbol() public pure override returns (string memory) {
        return "AGENT";
    }

    function register() external returns (uint256 agentId) {
        return _register("");
    }

    function register(string calldata agentURI) external returns (uint256 agentId) {
        return _register(agentURI);
    }

    function register(string calldata agentURI, MetadataEntry[] calldata metadata) external returns (uint256 agentId) {
        agentId = _register(agentURI);
        for (uint256 i = 0; i < metadata.length; ++i) {
            _set(agentId, metadata[i].metadataKey, metadata[i].metadataValue);
        }
    }

    function setAgentURI(uint256 agentId, string calldata newURI) external {
        _onlyHolder(agentId);
        _setTokenURI(agentId, newURI);
        emit URIUpdated(agentId, newURI, msg.sender);
    }

    function setMetadata(uint256 agentId, string calldata metadataKey, bytes calldata metadataValue) external {
        _onlyHolder(agentId);
        _set(agentId, metadataKey, metadataValue);
    }

    function getMetadata(uint256 agentId, string calldata metadataKey) external view returns (bytes memory) {
        return _metadata[agentId][metadataKey];
    }

    function getAgentWallet(uint256 agentId) external view returns (address) {
        _requireOwned(agentId);
        return _wallets[agentId];
    }

    function _register(string memory agentURI) private returns (uint256 agentId) {
        agentId = _next++;
        _wallets[agentId] = msg.sender;
        _setTokenURI(agentId, agentURI);
        emit Registered(agentId, agentURI, msg.sender);
        _safeMint(msg.sender, agentId);
    }

    function _set(uint256 agentId, string calldata key, bytes calldata value) private {
        if (keccak256(bytes(key)) == keccak256("agentWallet")) revert ReservedKey();
        _metadata[agentId][key] = value;
        emit MetadataSet(agentId, key, key, value);
    }

    function _onlyHolder(uint256 agentId) private view {
        if (!_isAuthorized(_requireOwned(agentId), msg.sender, agentId)) revert NotAuthorized();
    }

    function _update(address to, uint256 agentId, address auth) internal override returns (address from) {
        from = super._update(to, agentId, auth);
        if (from != address(0)) delete _wallets[agentId];
    }
}
