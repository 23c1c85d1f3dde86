/** Whether a mount answers at all, asked so that whoever asks can stop waiting. */

import { spawn } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { OWN_SESSION } from "../own-session.ts";
import { searchPath } from "../search-path.ts";

/** What takes longer than this is no answer. */
const ANSWER_MAX_MS = 5000;

/**
 * Whether statfs(2) of a path comes back, well or not: the kernel asks the daemon for it each time, which needs no
 * medium to answer. Another process asks, since a thread that waits for an answer cannot even end its own.
 */
export async function statfsAnswers(path: string): Promise<boolean> {
  const child = spawn("stat", ["-f", "--", path], {
    ...OWN_SESSION,
    stdio: "ignore",
    env: { ...process.env, PATH: searchPath() },
  });
  const limit = new AbortController();
  const answered = new Promise<boolean>((resolve) => {
    child.once("exit", () => resolve(true));
    // Without the program nobody is asked.
    child.once("error", () => resolve(true));
  });
  const tooLong = sleep(ANSWER_MAX_MS, false, { signal: limit.signal }).catch(() => false);
  const isAnswered = await Promise.race([answered, tooLong]);
  limit.abort();
  child.kill("SIGKILL");
  child.unref();
  return isAnswered;
}
