"""A customer: the official Python x402 client, unmodified, paying by the scheme it is told to.

    python schemes.py SELLER_URL PRIVATE_KEY CALLS stream|plain SCHEME RPC_URL

SCHEME: exact, upto or batch-settlement. Prints one JSON line a call: {call, status, charged, payment, error}; `charged`
is what the answer itself says, at its end.
"""

import asyncio
import base64
import json
import re
import sys

from eth_account import Account
from x402 import x402Client
from x402.http.clients import x402HttpxClient
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSignerWithRPC
from x402.mechanisms.evm.upto.client import UptoEvmScheme


async def main(seller, key, calls, mode, name, rpc_url):
    signer = EthAccountSignerWithRPC(Account.from_key(key), rpc_url)
    client = x402Client()
    # The client refuses tokens that it does not know until it is told.
    client.set_spend_controls(False)
    if name == "exact":
        register_exact_evm_client(client, signer)
    elif name == "upto":
        client.register("eip155:*", UptoEvmScheme(signer))
    else:
        client.register("eip155:*", BatchSettlementEvmScheme(signer))
    failed = False
    async with x402HttpxClient(client) as http:
        # An agent names its model; the tests' stand-in sellers have none.
        models = await http.get(f"{seller}/v1/models")
        model = models.json()["data"][0]["id"] if models.status_code == 200 else None
        for call in range(int(calls)):
            question = {
                **({"model": model} if model else {}),
                "messages": [{"role": "user", "content": f"question {call}"}],
                "max_tokens": 16,
                "stream": mode == "stream",
            }
            answer = await http.post(f"{seller}/v1/chat/completions", json=question)
            text = (await answer.aread()).decode()
            line = {"call": call, "status": answer.status_code}
            charged = re.search(r'"charged":"(\d+)"', text)
            if charged:
                line["charged"] = charged.group(1)
            header = answer.headers.get("payment-response")
            if header:
                line["payment"] = json.loads(base64.b64decode(header))
            if answer.status_code != 200:
                line["error"] = text
                failed = True
            print(json.dumps(line), flush=True)
    return failed


sys.exit(1 if asyncio.run(main(*sys.argv[1:7])) else 0)
