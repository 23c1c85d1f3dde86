/** `tsimgfs top`: what all mounts do right now. */

import { setTimeout as sleep } from "node:timers/promises";
import { Option } from "commander";
import { UsageError } from "../../errors.ts";
import { wantsColours } from "../../terminal-colours.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { type Output, outputOption } from "../options.ts";
import { print } from "../print.ts";
import { frameText } from "../top/frame.ts";
import { type MountActivity, Sampler } from "../top/sampler.ts";
import { Screen } from "../top/screen.ts";

const DELAY_MIN = 0.1;
const DELAY_MAX = 3600;

interface TopOptions {
  readonly once?: boolean;
  readonly output: Output;
  /** Seconds. */
  readonly delay: number;
}

export function defineTop(command: DocumentedCommand): void {
  command
    .description(
      "Show what all mounts are doing, by device: requests and bytes per second, latencies, copies from backing files (clusters per second) and streaming. Press q to quit.",
    )
    .addOption(
      new Option("-d, --delay <seconds>", "time between frames").default(1).argParser(seconds),
    )
    .option("--once", "print one frame after one delay, then quit")
    .addOption(outputOption())
    .document({
      notes: [
        "With --output json, each frame is an object, on one line unless --once is given: rates and latencies (us) since the previous frame.",
      ],
      examples: [
        ["Watch all mounts", "tsimgfs top"],
        ["Five seconds, for a program", "tsimgfs top --once --output json -d 5"],
      ],
      seeAlso: ["stats", "list"],
    })
    .action(top);
}

function seconds(text: string): number {
  const value = /^\d+(\.\d+)?$/.test(text) ? Number(text) : Number.NaN;
  if (value >= DELAY_MIN && value <= DELAY_MAX) return value;
  throw new UsageError(
    "--delay",
    `${text} is not a number of seconds in ${DELAY_MIN}..${DELAY_MAX}`,
  );
}

async function top({ once = false, output, delay }: TopOptions): Promise<void> {
  const sampler = new Sampler();
  sampler.sample();
  // A terminal that is dumb cannot go back to the top of its screen.
  const isScreen = process.stdout.isTTY && process.env["TERM"] !== "dumb";
  if (output === "human" && !once && isScreen) {
    await showLive(sampler, delay);
    return;
  }
  do {
    await sleep(delay * 1000);
    const mounts = sampler.sample();
    print(output === "json" ? jsonLine(mounts, once) : frame(mounts));
  } while (!once);
}

function jsonLine(mounts: readonly MountActivity[], isPretty: boolean): string {
  const view = { time: new Date().toISOString(), mounts };
  return `${JSON.stringify(view, null, isPretty ? 2 : undefined)}\n`;
}

function frame(mounts: readonly MountActivity[]): string {
  const { isTTY } = process.stdout;
  const { columns } = terminalSize();
  // Nobody has asked for less than all of it.
  const size = {
    columns: isTTY ? columns : Number.MAX_SAFE_INTEGER,
    rows: Number.MAX_SAFE_INTEGER,
  };
  return frameText(mounts, timeOfDay(), { ...size, colors: wantsColours(isTTY) });
}

/** Some terminals, as those of serial lines, do not know their size. */
function terminalSize(): { columns: number; rows: number } {
  const { columns, rows } = process.stdout;
  return { columns: columns > 0 ? columns : 80, rows: rows > 0 ? rows : 24 };
}

function timeOfDay(): string {
  return new Date().toTimeString().slice(0, "hh:mm:ss".length);
}

async function showLive(sampler: Sampler, delay: number): Promise<void> {
  const ending = new AbortController();
  let mounts = sampler.sample();
  const draw = (): void => {
    const { columns, rows } = terminalSize();
    // The last line stays free: a line feed there would scroll.
    const colors = wantsColours(process.stdout.isTTY);
    screen.draw(frameText(mounts, timeOfDay(), { columns, rows: rows - 1, colors }));
  };
  const screen = new Screen({ onQuit: () => ending.abort(), onResize: draw });
  screen.open();
  try {
    while (!ending.signal.aborted) {
      draw();
      await sleep(delay * 1000, undefined, { signal: ending.signal }).catch(() => undefined);
      if (!ending.signal.aborted) mounts = sampler.sample();
    }
  } finally {
    screen.close();
  }
}
