/** Reading a chain under the shared lock of its image, which nobody waits for while the medium is slow. */

import type { FormatWriter, HostPlace } from "../formats/writer.ts";
import type { NativeBuffer } from "../syscalls/native-buffer.ts";
import { READ_AGAIN, type UnlockedReads } from "../threads/unlocked-reads.ts";
import type { BackingChain } from "./backing-chain.ts";
import type { ReadAccess } from "./snapshot-access.ts";

/** After so many changes of the image during a read, changes wait for the next one. */
const ATTEMPTS = 3;

export class SharedReads {
  readonly #access: ReadAccess;
  readonly #unlocked: UnlockedReads | undefined;

  /** @param unlocked undefined: the files give up no lock */
  constructor(access: ReadAccess, unlocked: UnlockedReads | undefined) {
    this.#access = access;
    this.#unlocked = unlocked;
  }

  /**
   * Read as BackingChain.read; `own`: as BackingChain.readOwn. Without the lock.
   *
   * @returns bytes done
   */
  read(
    chain: BackingChain,
    what: "all" | "own",
    guestOffset: number,
    length: number,
    target: NativeBuffer,
    start: number,
  ): number {
    const attempts = this.#unlocked === undefined ? 0 : ATTEMPTS;
    for (let attempt = 0; ; attempt++) {
      this.#access.lockShared();
      if (attempt < attempts) this.#unlocked?.begin();
      try {
        if (what === "own") return chain.readOwn(guestOffset, length, target, start);
        chain.read(guestOffset, length, target, start);
        return length;
      } catch (error) {
        if (error !== READ_AGAIN) throw error;
      } finally {
        this.#unlocked?.end();
        this.#access.unlockShared();
      }
    }
  }

  /**
   * As FormatWriter.mapInPlace, under the shared lock, which is given up while tables are read. What is cached
   * then spares whoever goes on under the exclusive lock to wait for them.
   *
   * @returns 0 also if the image has changed meanwhile
   */
  mapInPlace(writer: FormatWriter, guestOffset: number, length: number, out: HostPlace): number {
    const unlocked = this.#unlocked;
    if (unlocked === undefined) return writer.mapInPlace(guestOffset, length, out);
    unlocked.begin();
    try {
      const count = writer.mapInPlace(guestOffset, length, out);
      if (!unlocked.hasRead) return count;
    } catch (error) {
      if (error !== READ_AGAIN) throw error;
      return 0;
    } finally {
      unlocked.end();
    }
    // Another thread may have freed the place meanwhile.
    return writer.mapInPlace(guestOffset, length, out);
  }
}
