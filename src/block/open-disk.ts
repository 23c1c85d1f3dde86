/** The disk of an image that this process has opened for itself, with the files that it consists of. */

import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import { attachDisk } from "./attach-disk.ts";
import type { Disk } from "./disk.ts";
import { closeChain, type OpenChain } from "./open-chain.ts";

/** Files that are open, and the disk that they are, for one thread alone. */
export class OpenDisk {
  readonly path: string;
  readonly chain: OpenChain;
  readonly disk: Disk;
  #isUsed = true;
  #isOpen = true;

  /** @param chain opened for one thread at the most; it is closed by `close` */
  constructor(path: string, chain: OpenChain) {
    this.path = path;
    this.chain = chain;
    const resources = { clusterCache: new ClusterCache() };
    this.disk = attachDisk(chain, resources, { slot: 0, requestMaintenance: undefined });
  }

  /**
   * End writing, if it was opened for that: what was written is durable. The disk is not used any more; the
   * files stay open, and locked. A second time nothing happens.
   *
   * @throws {TsimgfsError} what was written may not be durable
   */
  endWriting(): void {
    if (!this.#isUsed) return;
    this.#isUsed = false;
    this.disk.close();
  }

  /**
   * As `endWriting`, and close the files.
   *
   * @throws {TsimgfsError} what was written may not be durable; the files are closed all the same
   */
  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    try {
      this.endWriting();
    } finally {
      for (const { cipher } of this.disk.chain.images) cipher?.sectors.free();
      closeChain(this.chain);
    }
  }
}
