/** A line on the terminal that says how far a long command is, how fast it goes, and what is left. */

import { print, quiet } from "./print.ts";
import { sizeText } from "./size-text.ts";

const BAR_WIDTH = 30;
/** At most so often, ms: terminals are slow. */
const INTERVAL_MS = 100;

/** Sizes in bytes. */
export interface Progress {
  readonly done: number;
  readonly total: number;
  /** Done in a second; 0: not known. */
  readonly rate: number;
}

/** `[=====>    ]  42% of 3 GiB, 210 MiB/s, 0:08 left`. */
export function progressLine({ done, total, rate }: Progress): string {
  const part = total === 0 ? 1 : Math.min(done / total, 1);
  const filled = Math.floor(part * BAR_WIDTH);
  const bar = `${"=".repeat(filled)}${filled < BAR_WIDTH ? ">" : ""}`.padEnd(BAR_WIDTH);
  const percent = String(Math.floor(part * 100)).padStart(3);
  const speed = rate > 0 ? `, ${sizeText(rate)}/s, ${timeText((total - done) / rate)} left` : "";
  return `[${bar}] ${percent}% of ${sizeText(total)}${speed}`;
}

/** `0:08`, `1:02:03`. */
function timeText(seconds: number): string {
  const whole = Math.max(0, Math.ceil(seconds));
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const two = (value: number): string => String(value).padStart(2, "0");
  const start = hours > 0 ? `${hours}:${two(minutes)}` : String(minutes);
  return `${start}:${two(whole % 60)}`;
}

/** The line on standard output, if that is a terminal. */
export class ProgressBar {
  readonly #isShown: boolean;
  #drawnAt = Number.NEGATIVE_INFINITY;
  /** Characters of the line that is there. */
  #width = 0;

  constructor(isWanted: boolean) {
    this.#isShown = isWanted && !quiet() && process.stdout.isTTY;
  }

  draw(progress: Progress): void {
    const now = performance.now();
    if (!this.#isShown || now - this.#drawnAt < INTERVAL_MS) return;
    this.#drawnAt = now;
    const line = progressLine(progress);
    // Spaces and no control sequence: any terminal can do that.
    print(`\r${line.padEnd(this.#width)}`);
    this.#width = line.length;
  }

  /** Take the line away: something else is printed. */
  clear(): void {
    if (this.#width > 0) print(`\r${"".padEnd(this.#width)}\r`);
    this.#width = 0;
  }
}
