/** What the kernel is to know of threads that serve a file system: prctl(2), PR_SET_IO_FLUSHER. */

import { prctl } from "../syscalls/libc.ts";

const PR_SET_IO_FLUSHER = 57;

/**
 * Memory that serving a request allocates must not wait for the very device that is served. For this thread, and
 * those that it starts from now on; without effect where the user may not ask for it.
 */
export function becomeIoFlusher(): void {
  prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
}
