/**
 * Giving up the shared lock of an image while a medium is waited for. A read that takes seconds, or never
 * ends, would keep out whoever wants to exclude, and he all others. So a thread that shares gives the lock
 * up for each read of a file, takes it again, and looks whether anything has changed that could make wrong
 * what it knew: the structure of the image, or space of the host that was freed, and so may be that of others.
 * Then it starts again.
 */

import type { ReadInterlude } from "../storage/storage.ts";
import type { AccessLock } from "./access-lock.ts";

/** Thrown out of a read: what was read is void. Always the same, since nobody reads it. */
export const READ_AGAIN = new Error("the image has changed during a read");

export class UnlockedReads implements ReadInterlude {
  isOn = false;
  /** A file was read since `begin`: tables that were looked at before may have changed. */
  hasRead = false;
  readonly #lock: AccessLock;
  #generation = 0;
  #releases = 0;

  /** @param lock of this thread */
  constructor(lock: AccessLock) {
    this.#lock = lock;
  }

  /** Give the lock up for each read from now on; holding it shared. */
  begin(): void {
    this.#generation = this.#lock.generation;
    this.#releases = this.#lock.releases;
    this.hasRead = false;
    this.isOn = true;
  }

  end(): void {
    this.isOn = false;
  }

  before(): void {
    this.hasRead = true;
    this.#lock.unlockShared();
  }

  /** @throws READ_AGAIN, holding the lock */
  after(): void {
    const lock = this.#lock;
    lock.lockShared();
    if (lock.generation === this.#generation && lock.releases === this.#releases) return;
    throw READ_AGAIN;
  }
}
