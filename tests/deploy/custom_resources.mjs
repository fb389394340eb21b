// Custom resources against the schemas of npm's @kubernetes-models, made strict.
//
//     node custom_resources.mjs FOLDER < resources.json
//
// FOLDER holds node_modules. The packages' validators are compiled from the projects' CRDs; they pass
// over fields that they do not know. So each resource is handed to its validator behind a proxy that
// notes which fields were looked at: one that nobody looked at is unknown to the schema.
// Prints one list of complaints, as JSON.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { join, resolve } from "node:path";

const KEDA = "keda/_schemas/ComGithubKedacoreKedaV2ApisKedaV1alpha1";
const SCHEMAS = {
  "keda.sh/v1alpha1 ScaledObject": `${KEDA}ScaledObject.js`,
  "monitoring.coreos.com/v1 ServiceMonitor":
    "prometheus-operator/_schemas/ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1ServiceMonitor.js",
  "gateway.networking.k8s.io/v1 GRPCRoute": "gateway-api/_schemas/IoK8sSigsGatewayApiApisV1GRPCRoute.js",
};

function watched(value, path, unseen) {
  if (value === null || typeof value !== "object") return value;
  const children = {};
  for (const key of Object.keys(value)) {
    const place = `${path}/${key}`;
    unseen.add(place);
    children[key] = watched(value[key], place, unseen);
  }
  return new Proxy(value, {
    get(target, key) {
      unseen.delete(`${path}/${String(key)}`);
      return key in children ? children[key] : target[key];
    },
  });
}

const complaints = [];
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  const kind = `${resource.apiVersion} ${resource.kind}`;
  if (!(kind in SCHEMAS)) {
    complaints.push(`${kind}: there is no schema`);
    continue;
  }
  const file = resolve(join(process.argv[2], "node_modules/@kubernetes-models", SCHEMAS[kind]));
  const { validate } = await import(pathToFileURL(file).href);
  const unseen = new Set();
  if (!validate(watched(resource, "", unseen))) {
    for (const error of validate.errors) {
      complaints.push(`${kind}${error.instancePath}: ${error.keyword} ${JSON.stringify(error.params)}`);
    }
  }
  for (const place of unseen) complaints.push(`${kind}${place}: unknown field`);
}
console.log(JSON.stringify(complaints));
