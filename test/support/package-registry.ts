// A package registry of this machine, with what is installed in node_modules: packages install from it with no network.

import { readFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { REPOSITORY } from "./repository.ts";
import { run } from "./run.ts";

/** The end of the path of a package's file. */
const TARBALL = "/-/package.tgz";

export class PackageRegistry {
  readonly #server: Server;
  readonly #directory: string;

  /** @param directory for the files of packages */
  private constructor(server: Server, directory: string) {
    this.#server = server;
    this.#directory = directory;
  }

  static async start(directory: string): Promise<PackageRegistry> {
    const server = createServer();
    const registry = new PackageRegistry(server, directory);
    server.on("request", ({ url = "/" }, response) => {
      registry.#answer(decodeURIComponent(url.slice(1))).then(
        (body) => response.end(body),
        () => response.writeHead(404).end("{}"),
      );
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return registry;
  }

  get url(): string {
    // A server on a port, not a pipe.
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async #answer(path: string): Promise<string | Buffer> {
    if (path.endsWith(TARBALL)) return await this.#pack(path.slice(0, -TARBALL.length));
    const description: { name: string; version: string } = JSON.parse(
      await readFile(join(REPOSITORY, "node_modules", path, "package.json"), "utf8"),
    );
    const { name, version } = description;
    const dist = { tarball: `${this.url}/${name}${TARBALL}` };
    return JSON.stringify({
      name,
      "dist-tags": { latest: version },
      versions: { [version]: { ...description, dist } },
    });
  }

  async #pack(name: string): Promise<Buffer> {
    const file = join(this.#directory, `${name.replace("/", "-")}.tgz`);
    const source = join(REPOSITORY, "node_modules", name);
    const names = ["--transform", "s,^[.],package,"];
    await run("tar", ["-C", source, "-I", "gzip -1", ...names, "-cf", file, "."]);
    return await readFile(file);
  }
}
