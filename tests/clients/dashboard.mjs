// Opens an agent's dashboard as a browser does, as far as its script goes: the page is fetched, and its own script runs on
// A STAND-IN for the document and for EventSource. Nothing is drawn.
//
//   node dashboard.mjs URL
//
// Prints a JSON line for each thing that a person would see happen: {role}, the badge that says how the agent is;
// {epoch}; {event}, a line of its log; {follows}, the host that the page reads from now; {error}, what the page's script
// threw. It ends when it is killed.
import { runInNewContext } from 'node:vm';

const [url] = process.argv.slice(2);
const tell = (what) => console.log(JSON.stringify(what));

// One element: text, children, and attributes that nobody here looks at.
class Element {
  children = [];
  style = {};
  className = '';
  innerHTML = '';
  #text = '';
  constructor(id) {
    this.id = id;
  }
  get textContent() {
    return this.#text;
  }
  set textContent(text) {
    this.#text = text;
    if (this.id === 'role') tell({ role: text });
    if (this.id === 'epoch') tell({ epoch: text });
  }
  get lastChild() {
    const element = this.children.at(-1);
    return element && Object.assign(element, { remove: () => this.children.pop() });
  }
  append(...elements) {
    this.children.push(...elements);
  }
  insertBefore(element, before) {
    this.children.splice(before ? this.children.indexOf(before) : this.children.length, 0, element);
    if (this.id === 'log') tell({ event: element.children[1].textContent });
  }
}

class EventSource {
  #listeners = {};
  #stop = new AbortController();
  constructor(from) {
    tell({ follows: from });
    this.#read(from).catch((e) => this.#stop.signal.aborted || this.#fail(e));
  }
  addEventListener(name, listener) {
    this.#listeners[name] = listener;
  }
  close() {
    this.#stop.abort();
  }
  #fail(why) {
    tell({ broke: String(why) });
    this.onerror?.();
  }
  async #read(from) {
    const answer = await fetch(from, { signal: this.#stop.signal, headers: { accept: 'text/event-stream' } });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const decoder = new TextDecoder();
    let rest = '';
    for await (const piece of answer.body) {
      rest += decoder.decode(piece, { stream: true });
      const events = rest.split('\n\n');
      rest = events.pop();
      for (const event of events) {
        const field = (name) => event.split('\n').find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
        // A comment keeps the connection alive.
        if (field('data') === undefined || this.#stop.signal.aborted) continue;
        try {
          this.#listeners[field('event')]?.({ data: field('data') });
        } catch (e) {
          tell({ error: String(e) });
        }
      }
    }
    if (!this.#stop.signal.aborted) throw new Error('the stream ended');
  }
}

const elements = {};
const page = await (await fetch(`${url}/`)).text();
const script = page.match(/<script>([\s\S]*)<\/script>/)[1];
const document = {
  getElementById: (id) => (elements[id] ??= new Element(id)),
  createElement: () => new Element(),
};
process.on('unhandledRejection', (e) => tell({ error: String(e) }));
runInNewContext(script, { document, EventSource, fetch, setTimeout, location: new URL(url), console });
