/** What the daemon has open that it was not given on purpose. Imports nothing of ours: it comes first. */

import fs from "node:fs";

/** The highest of the descriptors that the daemon is given on purpose: its report. */
const LAST_GIVEN = 3;
const O_CLOEXEC = 0o2000000;

/**
 * Close the descriptors that this process has from whoever started it, such as locks and pipes of a
 * shell. Node and what it loads open theirs to be closed on exec: by that they are told apart. While no other
 * thread starts: V8 opens files for a moment then that look like these, and to close one of another thread
 * is to close, later, whatever has its number by then.
 */
export function closeInherited(): void {
  for (const name of fs.readdirSync("/proc/self/fd")) {
    const fd = Number(name);
    if (fd <= LAST_GIVEN) continue;
    try {
      const info = fs.readFileSync(`/proc/self/fdinfo/${name}`, "utf8");
      const flags = /^flags:\s*([0-7]+)$/m.exec(info)?.[1];
      if (flags === undefined) continue;
      if ((Number.parseInt(flags, 8) & O_CLOEXEC) === 0) fs.closeSync(fd);
    } catch {
      // The descriptor of the listing itself.
    }
  }
}
