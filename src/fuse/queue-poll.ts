/** What there is in a session's queue, without taking it: poll(2) on /dev/fuse. */

import { poll } from "../syscalls/libc.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";

/** `struct pollfd`: the descriptor, what is asked for, and what was found. */
const POLLFD_SIZE = 8;
const FD_AT = 0;
const EVENTS_AT = 4;
const REVENTS_AT = 6;
const POLLIN = 1;
const POLLERR = 8;

export class QueuePoll {
  readonly #entry = NativeBuffer.allocate(POLLFD_SIZE);

  /** @param fd a descriptor of the session */
  constructor(fd: number) {
    this.#entry.view.setInt32(FD_AT, fd, true);
    this.#entry.view.setInt16(EVENTS_AT, POLLIN, true);
  }

  /** True also if there will be no more requests: a read says so then. */
  hasRequest(): boolean {
    return poll(this.#entry.address, 1, 0) !== 0;
  }

  /** Whether the session has ended: the file system is mounted nowhere, and nobody has a file of it open. */
  hasEnded(): boolean {
    poll(this.#entry.address, 1, 0);
    return (this.#entry.view.getInt16(REVENTS_AT, true) & POLLERR) !== 0;
  }
}
