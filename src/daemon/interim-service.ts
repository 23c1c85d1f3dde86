/**
 * Serving requests on the main thread until the first I/O thread has started, which takes longer than
 * making the mount: so the mount is ready 40 ms sooner. The main thread never waits here: it looks for
 * requests once a millisecond.
 */

import fs from "node:fs";
import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import { RequestServer } from "../fuse/request-loop.ts";
import { cloneNonBlockingQueue, type Session } from "../fuse/session.ts";
import type { TreeThread } from "../tree/description.ts";
import { Tree } from "../tree/tree.ts";
import type { Served } from "./io-thread-start.ts";

const POLL_MS = 1;

export class InterimService {
  readonly #queue: number;
  readonly #requests: RequestServer;
  #timer: NodeJS.Timeout | undefined;

  private constructor(queue: number, requests: RequestServer) {
    this.#queue = queue;
    this.#requests = requests;
    this.#turn();
  }

  /**
   * Start to serve the session of `fd`; undefined where this user may not open /dev/fuse once more.
   *
   * @param thread whose counters and locks to use: of no other thread
   */
  static start(
    { tree, ownership }: Served,
    { fd, thread, session }: { fd: number; thread: number; session: Session },
    requests: Pick<TreeThread, "requestMaintenance" | "wakeStream">,
  ): InterimService | undefined {
    const queue = cloneNonBlockingQueue(fd);
    if (queue === undefined) return undefined;
    const resources = { clusterCache: new ClusterCache() };
    const server = {
      tree: new Tree(tree, resources, { thread, ...requests }),
      ownership,
    };
    const requestServer = new RequestServer(server, { fd: queue, dataMax: session.dataMax });
    return new InterimService(queue, requestServer);
  }

  stop(): void {
    clearTimeout(this.#timer);
    fs.closeSync(this.#queue);
  }

  readonly #turn = (): void => {
    while (this.#requests.serveOne() === "served");
    this.#timer = setTimeout(this.#turn, POLL_MS);
  };
}
