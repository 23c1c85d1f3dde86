/**
 * The terminal while something is shown that changes: its alternate screen, without cursor, keys read one by
 * one. However the process ends, the terminal is as it was before.
 */

import { print } from "../print.ts";

const ENTER = "\u001b[?1049h\u001b[?25l";
const LEAVE = "\u001b[?25h\u001b[?1049l";
const HOME = "\u001b[H";
const CLEAR_LINE = "\u001b[K";
const CLEAR_BELOW = "\u001b[J";
const CTRL_C = "\u0003";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** What is done when something happens on the terminal. */
export interface ScreenEvents {
  readonly onQuit: () => void;
  readonly onResize: () => void;
}

export class Screen {
  readonly #events: ScreenEvents;
  #isOpen = false;
  readonly #leave = (): void => this.close();
  readonly #onKey = (key: Buffer): void => {
    const text = key.toString();
    if (text === "q" || text === "Q" || text.includes(CTRL_C)) this.#events.onQuit();
  };
  readonly #onSignal = (): void => this.#events.onQuit();

  constructor(events: ScreenEvents) {
    this.#events = events;
  }

  open(): void {
    this.#isOpen = true;
    process.on("exit", this.#leave);
    for (const signal of SIGNALS) process.on(signal, this.#onSignal);
    process.stdout.on("resize", this.#events.onResize);
    if (process.stdin.isTTY) {
      process.stdin.setRawMode(true);
      process.stdin.on("data", this.#onKey);
    }
    print(ENTER);
  }

  /** Show lines in place of those before. */
  draw(text: string): void {
    print(`${HOME}${text.replaceAll("\n", `${CLEAR_LINE}\r\n`)}${CLEAR_BELOW}`);
  }

  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    if (process.stdin.isTTY) {
      process.stdin.off("data", this.#onKey);
      process.stdin.setRawMode(false);
      process.stdin.pause();
    }
    process.stdout.off("resize", this.#events.onResize);
    for (const signal of SIGNALS) process.off(signal, this.#onSignal);
    process.off("exit", this.#leave);
    print(LEAVE);
  }
}
