/** Passphrases that were read, and what is left of them. */

import fs from "node:fs";
import { join } from "node:path";
import { afterEach, expect, it, vi } from "vitest";
import { forgetSecrets, readSecret, SECRET_VARIABLE, secretsOf } from "../../../src/cli/secrets.ts";
import { withScratch } from "../../support/scratch.ts";

afterEach(() => {
  vi.unstubAllEnvs();
});

it("are all overwritten, wherever they came from", async () => {
  await withScratch("secrets", async (directory) => {
    const file = join(directory, "secret");
    fs.writeFileSync(file, "from a file");
    const fromFile = readSecret(file);
    vi.stubEnv(SECRET_VARIABLE, "from the environment");
    const {
      secrets: [fromEnvironment],
    } = secretsOf({});
    expect(String(fromFile)).toBe("from a file");
    expect(String(fromEnvironment)).toBe("from the environment");
    forgetSecrets();
    expect(fromFile).toEqual(Buffer.alloc(11));
    expect(fromEnvironment).toEqual(Buffer.alloc(20));
  });
});
