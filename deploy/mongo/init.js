// Initiates the replica set and makes one user for each service. Running it again changes nothing, except that
// a changed password takes effect.
const fs = require("fs");

const secret = (name) => fs.readFileSync(`/run/secrets/${name}`, "utf8").trim();
const members = ["mongo-1:27017", "mongo-2:27017", "mongo-3:27017"];
const root = `root:${encodeURIComponent(secret("mongo_root_password"))}`;

const first = new Mongo(`mongodb://${root}@${members[0]}/admin?directConnection=true`).getDB("admin");
try {
  first.runCommand({ replSetGetStatus: 1 });
} catch (error) {
  if (error.codeName !== "NotYetInitialized") throw error;
  first.runCommand({
    replSetInitiate: { _id: "rs0", members: members.map((host, _id) => ({ _id, host })) },
  });
}

// Waits for a primary, whichever member that is by now.
const set = new Mongo(`mongodb://${root}@${members.join(",")}/admin?replicaSet=rs0&serverSelectionTimeoutMS=60000`);
const admin = set.getDB("admin");
for (const service of ["processor", "claims"]) {
  const user = `carebus_${service}`;
  const definition = {
    pwd: secret(`mongo_${service}_password`),
    roles: [{ role: "readWrite", db: `carebus_${service}` }],
  };
  if (admin.getUser(user)) admin.updateUser(user, definition);
  else admin.createUser({ user, ...definition });
}
