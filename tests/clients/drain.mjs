// Puts every prompt of standard input (a JSON array of strings) to an OpenAI base URL that pays, eight at a time.
//
//   node drain.mjs BASE_URL MAX_TOKENS < prompts.json
//
// Prints one JSON line at the end: {answered, refused: {why: count}, characters}. A prompt that was neither answered
// nor refused as the customer's own mistake (4xx) ends it with 1.
import { readFileSync } from 'node:fs';

const [baseUrl, maxTokens] = process.argv.slice(2);
const prompts = JSON.parse(readFileSync(0, 'utf8'));
const { data: models } = await (await fetch(`${baseUrl}/models`)).json();
const refused = {};
let answered = 0;
let characters = 0;
let next = 0;

async function ask(prompt) {
  // A move may close the door for a moment: 503 says so, and nothing was paid.
  for (let attempt = 0; attempt < 40; attempt += 1) {
    const response = await fetch(`${baseUrl}/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        model: models[0].id,
        messages: [{ role: 'user', content: prompt }],
        max_tokens: Number(maxTokens),
      }),
    });
    const body = await response.json().catch(() => ({}));
    if (response.ok) {
      answered += 1;
      characters += body.choices?.[0]?.message?.content?.length ?? 0;
      return;
    }
    // 409: the host died on this answer. SDKs ask again by themselves, like after a 429.
    if (response.status < 500 && ![409, 429].includes(response.status)) {
      const why = `${response.status} ${body.error?.code}: ${body.error?.message}`;
      refused[why] = (refused[why] ?? 0) + 1;
      return;
    }
    const wait = Number(response.headers.get('retry-after') ?? 1);
    await new Promise((resolve) => setTimeout(resolve, 1000 * Math.max(1, wait)));
  }
  throw new Error(`neither answered nor refused: ${prompt}`);
}

async function worker() {
  while (next < prompts.length) await ask(prompts[next++]);
}

await Promise.all(Array.from({ length: 8 }, worker));
console.log(JSON.stringify({ answered, refused, characters }));
