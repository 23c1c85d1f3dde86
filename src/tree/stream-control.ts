/** The extended attribute `user.tsimgfs.stream` of a device: what it says, and what can be told to it. */

import type { Disk } from "../block/disk.ts";
import { refuseDependentSnapshots } from "../block/snapshot-dependence.ts";
import { TsimgfsError } from "../errors.ts";
import type { StreamState, StreamStateName } from "../threads/stream-state.ts";

export const STREAM_XATTR = "user.tsimgfs.stream";

/** Factors of the suffixes of a rate. */
const SUFFIXES = "kmgt";

type StreamCommand =
  | { readonly word: "start"; readonly limit: number | undefined }
  | { readonly word: "pause" | "cancel" };

/** `start`, `start=20M` (bytes a second), `pause`, `cancel`; undefined: none of these. */
export function parseStreamCommand(text: string): StreamCommand | undefined {
  if (text === "pause" || text === "cancel") return { word: text };
  const match = /^start(?:=(\d+)([kmgt]?))?$/i.exec(text);
  if (match === null) return undefined;
  const [, digits, suffix = ""] = match;
  if (digits === undefined) return { word: "start", limit: undefined };
  const exponent = suffix === "" ? 0 : SUFFIXES.indexOf(suffix.toLowerCase()) + 1;
  const limit = Number(digits) * 1024 ** exponent;
  return limit > 0 && Number.isSafeInteger(limit) ? { word: "start", limit } : undefined;
}

/** How far streaming is: as StreamProgress. */
export interface StreamStats {
  readonly state: StreamStateName;
  readonly done: number;
  readonly total: number;
  readonly "copied-bytes": number;
  readonly rate: number;
}

/** The streaming of one device, as one thread sees it. */
export class StreamControl {
  readonly #state: StreamState;
  readonly #disk: Disk;
  readonly #wake: () => void;

  /** @param wake lets the upkeep thread look at the state */
  constructor(state: StreamState, disk: Disk, wake: () => void) {
    this.#state = state;
    this.#disk = disk;
    this.#wake = wake;
  }

  /** `idle`, or a state and how far it is: `running 12345678/1073741824`. */
  text(): string {
    const { name, progress } = this.#state;
    return name === "idle" ? name : `${name} ${progress.done}/${progress.total}`;
  }

  /** For NAME.stats.json. */
  stats(): StreamStats {
    const { done, total, copied, rate } = this.#state.progress;
    return { state: this.#state.name, done, total, "copied-bytes": copied, rate };
  }

  /**
   * Do what a value says that the attribute is set to.
   *
   * @throws {TsimgfsError} EINVAL: it says nothing, or there is nothing to pause; ENODATA: there is no
   *   backing file any more; ENOTSUP: the image has snapshots
   */
  command(text: string): void {
    const { path } = this.#disk.chain.image.storage;
    const command = parseStreamCommand(text);
    if (command === undefined) {
      const reason = `"${text}" is not one of start, start=RATE, pause, cancel`;
      throw new TsimgfsError("EINVAL", path, reason);
    }
    if (this.#state.name === "done") {
      throw new TsimgfsError("ENODATA", path, "has no backing file any more");
    }
    if (command.word === "start") {
      this.#disk.inspect(() => refuseDependentSnapshots(this.#disk.chain.image));
      this.#state.start(command.limit);
    } else if (command.word === "cancel") this.#state.cancel();
    else if (!this.#state.pause()) throw new TsimgfsError("EINVAL", path, "is not streamed now");
    this.#wake();
  }
}
